"""Measurements for developers: `python -m tests.bench.gpu` measures a GPU, `python -m tests.bench.table` shows it."""

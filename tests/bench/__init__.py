"""Measurements for developers. `python -m tests.bench --help` lists them; `python -m tests.bench.gpu` measures a GPU,
and `python -m tests.bench.table` shows what it measured."""

"""Measurements for developers. `python -m tests.bench --help` lists them; `python -m tests.bench.gpu` measures a GPU,
and `python -m tests.bench.table` shows what it measured. `python -m tests.bench.pretrain` makes the demo ViT."""

import vptsp_core  # noqa: F401  # first: it prepares torchvision, which timm imports

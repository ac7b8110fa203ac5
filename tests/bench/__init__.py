"""Measurements for developers.

- ``python -m tests.bench --help`` lists the measurements of one thing.
- ``python -m tests.bench.gpu`` measures a GPU; ``python -m tests.bench.table`` makes tables of its file.
- ``python -m tests.bench.pretrain`` makes the demo ViT.
"""

import vptsp_core  # noqa: F401  # first: it prepares torchvision, which timm imports

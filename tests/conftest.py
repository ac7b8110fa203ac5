"""Shared by all tests: one thread, so that small tensors are quick and results do not depend on the machine."""

import torch

import vptsp_core  # noqa: F401  (before any test imports timm: it lets timm import torchvision)

torch.set_num_threads(1)

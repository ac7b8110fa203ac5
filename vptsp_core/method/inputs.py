"""Embeddings and labels of many kinds, as `retrieval_metrics` and `nearest_neighbours` accept them, read as tensors."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vptsp_core.errors import VptspError


def positive(name: str, value: Any) -> int:
    """Return ``value`` as an int. Raises VptspError, with the argument's ``name``, unless it is an integer >= 1."""
    try:
        if (number := operator.index(value)) >= 1:
            return number
    except TypeError:
        pass
    raise VptspError(f"{name}: {value!r} is not a whole number of at least 1")


def as_tensor(name: str, data: Any) -> Tensor:
    """Return data of any shape as a dense tensor without gradient. It shares the memory of the data if possible.

    Tensors, arrays, lists, pandas' tables and scipy's sparse arrays are read. Data on an Apple GPU is moved to the CPU,
    because that GPU has no float64 and no stable sort.
    Raises VptspError, with the ``name`` of the argument, if torch cannot read the data or a value is masked.
    """
    try:
        if isinstance(data, (list, tuple)) and data:
            if all(isinstance(each, Tensor) for each in data):
                data = torch.stack(list(data))
            elif all(isinstance(each, np.ndarray) for each in data):  # torch would copy number by number
                data = np.stack(data)
        if isinstance(data, Tensor):
            data = data.detach().cpu() if data.device.type == "mps" else data.detach()
            return data.to_dense() if data.layout != torch.strided else data
        if hasattr(data, "toarray"):  # scipy's sparse arrays
            data = data.toarray()
        elif hasattr(data, "to_numpy"):  # tables of pandas and similar libraries
            table, data = data, data.to_numpy()
            if data.dtype == object:  # pandas' types that allow missing values
                missing = table.isna().any(axis=None)
                data = table.to_numpy(float, na_value=np.nan) if missing else np.array(data.tolist())
        if np.ma.isMaskedArray(data):
            if np.ma.is_masked(data):
                raise ValueError(f"{np.ma.count_masked(data)} of its values are masked: leave their rows out")
            data = data.data
        if isinstance(data, np.ndarray):
            usable = data.flags.writeable and data.dtype.isnative and all(step >= 0 for step in data.strides)
            data = data if usable else data.astype(data.dtype.newbyteorder("="), order="C")
        return torch.as_tensor(data).detach()
    except Exception as error:  # of any library
        reason = " ".join(str(error).split()) or type(error).__name__
        raise VptspError(f"{name}: torch cannot read it ({reason}); give a tensor or an array of numbers") from None


def numbered(rows: list[int], of: Sized) -> str:
    """Return text such as "3 of 40 rows (1, 7, 9)" for a message. It names the first ten rows."""
    return f"{len(rows)} of {len(of)} rows ({', '.join(map(str, rows[:10]))}{', ...' * (len(rows) > 10)})"


def unit_rows(name: str, data: Any, like: Tensor | None = None) -> Tensor:
    """Return a copy of the data, (n, d), with float32 rows of L2 norm 1, on the device of ``like``. Zeros stay zeros.

    If ``like`` is given, (m, d), the data must have the same d.
    Raises VptspError, with the ``name`` of the argument, if it is not (n, d), or a row has NaN or infinity.
    """
    x = as_tensor(name, data)
    if x.dim() != 2 or 0 in x.shape or x.is_complex() or x.is_meta or x.is_quantized:
        raise VptspError(f"{name}: {x.dtype} of shape {tuple(x.shape)}; give one real vector per row, (n, d)")
    if like is not None:
        x = x.to(like.device)
        if x.shape[1] != like.shape[1]:
            raise VptspError(f"{name}: {x.shape[1]} dimensions, but the queries have {like.shape[1]}")
    x = x if x.dtype == torch.float64 else x.float()
    peak = torch.linalg.vector_norm(x, torch.inf, dim=1, keepdim=True)
    bad = (~peak.isfinite()).squeeze(1).nonzero().squeeze(1).tolist()
    if bad:
        raise VptspError(f"{name}: NaN or infinity in {numbered(bad, x)}; leave them out")
    unit = (x / torch.where(peak > 0, peak, 1)).float()  # first by the peak: the squares could overflow or underflow
    return unit.div_(torch.linalg.vector_norm(unit, dim=1, keepdim=True).clamp_(min=1))


def class_ids(name: str, data: Any, rows: Tensor) -> Tensor:
    """Return the classes of ``rows`` as int64, (n,), on their device. Raises VptspError if ``data`` is invalid."""
    try:
        ids = as_tensor(name, data)
    except VptspError:
        if isinstance(data, Iterable) and any(isinstance(each, str) for each in data):
            cure = "number the classes, as numpy.unique(..., return_inverse=True)[1] does"
            raise VptspError(f"{name} are text; {cure}") from None
        raise
    if ids.is_floating_point() and ids.dim() == 1 and (gaps := ids.isnan().nonzero().flatten().tolist()):
        raise VptspError(f"{name}: no class is given for {numbered(gaps, ids)}; leave them and their embeddings out")
    if ids.dim() != 1 or ids.is_floating_point() or ids.is_complex() or ids.is_meta or ids.is_quantized:
        raise VptspError(f"{name}: {ids.dtype} of shape {tuple(ids.shape)}; give one whole number per item")
    if len(ids) != len(rows):
        raise VptspError(f"{name}: {len(ids)} labels for {len(rows)} embeddings; give one for each")
    return ids.to(rows.device, torch.int64)

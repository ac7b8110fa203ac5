"""Check that a value has the type of an annotation, for the fields of `vptsp_core.method.config.RunConfig`."""

from __future__ import annotations

import math
import types
import typing
from typing import Any, Literal

import numpy as np

from vptsp_core.errors import ConfigError


def check_type(key: str, value: Any, hint: Any) -> Any:
    """Return ``value`` if it has the type of a field's annotation. An int is turned into a float if the field is one,
    and a NumPy number into Python's.

    Raises ConfigError: another type (bool is not int here), a word that is not allowed, NaN or infinity.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise ConfigError(f"{key} = {short_repr(value)} must be one of {', '.join(map(repr, allowed))}")
        return value
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    wanted = next(option for option in options if option is not type(None))
    if wanted is float and type(value) is int:
        value = float(value) if abs(value) < 2**1023 else math.inf  # float() raises OverflowError above
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ConfigError(f"{key} = {short_repr(value)} must be of type {wanted.__name__}, not {type(value).__name__}")
    if wanted is float and not math.isfinite(value):
        raise ConfigError(f"{key} = {short_repr(value)} must be a finite number")
    return value


def short_repr(value: Any) -> str:
    """Return the repr of a value, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

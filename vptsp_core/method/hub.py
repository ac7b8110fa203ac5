"""The hub that pretrained weights come from: asked in silence, and not for a minute where there is no network."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
from huggingface_hub import constants, try_to_load_from_cache

PATIENCE = 3.0  # seconds for a connection to one address; huggingface_hub tries six times, whatever is in the way
# What timm asks for where a model's description names no file of its own.
FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@contextlib.contextmanager
def asked(name: str) -> Iterator[None]:
    """Inside, timm may fetch the weights of ``name``; huggingface_hub tries again as ever, but tells nothing of it.

    Raises:
        ConnectionError: they are not in the cache, and the hub cannot be reached.
    """
    if not _cached(name) and not _reached():
        raise ConnectionError(f"no connection to {urlsplit(constants.ENDPOINT).hostname}")
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _cached(name: str) -> bool:
    """Whether weights of this model lie here; also where it has another source than the hub, so that none is asked."""
    known = timm.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        return True
    place, _, revision = known.hf_hub_id.partition("@")
    files = (known.hf_hub_filename,) if known.hf_hub_filename else FILES
    return any(isinstance(try_to_load_from_cache(place, file, revision=revision or None), str) for file in files)


def _reached() -> bool:
    """Whether the hub takes a connection; where a proxy is to be asked, it is left to huggingface_hub to find out."""
    if getproxies().keys() & {"http", "https", "all"}:
        return True
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), PATIENCE).close()
    except OSError:
        return False
    return True

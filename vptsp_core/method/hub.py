"""Check that the hub of pretrained weights (Hugging Face) can be reached, and silence its log messages.

Without the check, huggingface_hub would try to connect six times, and log each attempt.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import timm
from huggingface_hub import constants, try_to_load_from_cache

TIMEOUT = 3.0  # seconds to connect to one address
PORTS = {"http": 80, "https": 443}
# The files that timm looks for if a model's config does not name one.
FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@contextlib.contextmanager
def reachable_hub(name: str) -> Iterator[None]:
    """Check that timm can load the weights of ``name``; within the context, huggingface_hub logs only errors.
    Raises ConnectionError if the weights are not in the cache and the hub cannot be reached. The message says why.
    """
    if not _cached(name) and (obstacle := why_unreachable()):
        absent = f", and they are not in {constants.HF_HUB_CACHE}" if constants.HF_HUB_OFFLINE else ""
        raise ConnectionError(obstacle + absent)
    with quiet_hub_log():
        yield


def why_unreachable() -> str | None:
    """Return the reason why the hub cannot be reached, or None if it can."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
    proxy = _proxy()
    if _reached(proxy or constants.ENDPOINT):
        return None
    if proxy is None:
        return f"no connection to {urlsplit(constants.ENDPOINT).hostname}"
    without_password = urlsplit(proxy).netloc.rpartition("@")[2]
    return f"no connection to the proxy {without_password}, which the environment names"


@contextlib.contextmanager
def quiet_hub_log() -> Iterator[None]:
    """Within the context, huggingface_hub logs only errors."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _cached(name: str) -> bool:
    """Return whether the model's weights are in the cache. Also True if they do not come from the hub."""
    known = timm.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        return True
    place, _, revision = known.hf_hub_id.partition("@")
    files = (known.hf_hub_filename,) if known.hf_hub_filename else FILES
    return any(isinstance(try_to_load_from_cache(place, file, revision=revision or None), str) for file in files)


def _proxy() -> str | None:
    """Return the address of the proxy for the hub that the environment names, or None."""
    address = urlsplit(constants.ENDPOINT)
    if proxy_bypass(address.hostname or ""):
        return None
    proxies = getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def _reached(address: str) -> bool:
    """Return whether a server accepts a connection at the address."""
    try:
        parts = urlsplit(address)
        socket.create_connection((parts.hostname or "", parts.port or PORTS.get(parts.scheme, 1080)), TIMEOUT).close()
        return True
    except (OSError, ValueError):
        return False

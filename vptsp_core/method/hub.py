"""Pretrained weights from the hub: check that it can be reached, then fetch without log output."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import timm
from huggingface_hub import constants, try_to_load_from_cache

TIMEOUT = 3.0  # seconds for a connection to one address; huggingface_hub always tries six times
PORTS = {"http": 80, "https": 443}
# Files that timm tries if a model's config names none.
FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@contextlib.contextmanager
def reachable_hub(name: str) -> Iterator[None]:
    """Inside, timm may fetch the weights of ``name``; huggingface_hub retries as usual, but logs nothing of it.
    Raises ConnectionError: they are not in the cache, and the hub is out of reach; the error says why.
    """
    if not _cached(name) and (obstacle := why_unreachable()):
        absent = f", and they are not in {constants.HF_HUB_CACHE}" if constants.HF_HUB_OFFLINE else ""
        raise ConnectionError(obstacle + absent)
    with quiet_hub_log():
        yield


def why_unreachable() -> str | None:
    """Why the hub cannot be reached from here; None where it can."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
    proxy = _proxy()
    if _reached(proxy or constants.ENDPOINT):
        return None
    place = f"the proxy {_host(proxy)}, which the environment names" if proxy else _host(constants.ENDPOINT)
    return f"no connection to {place}"


@contextlib.contextmanager
def quiet_hub_log() -> Iterator[None]:
    """Inside, huggingface_hub logs errors only."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _cached(name: str) -> bool:
    """Whether weights of this model are in the cache; True also if the source is not the hub."""
    known = timm.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        return True
    place, _, revision = known.hf_hub_id.partition("@")
    files = (known.hf_hub_filename,) if known.hf_hub_filename else FILES
    return any(isinstance(try_to_load_from_cache(place, file, revision=revision or None), str) for file in files)


def _proxy() -> str | None:
    """Address of the proxy that the environment names for the hub, None without a proxy."""
    address = urlsplit(constants.ENDPOINT)
    if proxy_bypass(address.hostname or ""):
        return None
    proxies = getproxies()
    found = proxies.get(address.scheme) or proxies.get("all")
    return found if found is None or "://" in found else f"http://{found}"


def _host(address: str) -> str | None:
    """Host of an address, with its port where there is one; without a password."""
    parts = urlsplit(address)
    return parts.hostname if parts.port is None or address == constants.ENDPOINT else f"{parts.hostname}:{parts.port}"


def _reached(address: str) -> bool:
    """Whether a server answers there."""
    try:
        parts = urlsplit(address)
        socket.create_connection((parts.hostname or "", parts.port or PORTS.get(parts.scheme, 1080)), TIMEOUT).close()
    except (OSError, ValueError):
        return False
    return True

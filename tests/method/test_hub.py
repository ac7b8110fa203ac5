"""The hub of pretrained weights: without a network the error comes at once; cached weights need no network."""

import logging
import socket
import time

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from vptsp_core.errors import WeightsError
from vptsp_core.method import hub
from vptsp_core.method.backbone import load_backbone

NAME = "vit_tiny_patch16_224.augreg_in21k"


@pytest.fixture(autouse=True)
def nothing_cached(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def closed() -> str:
    """Return an address where no server listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_without_a_network_the_error_comes_at_once(monkeypatch, caplog):
    monkeypatch.setattr(constants, "ENDPOINT", closed())
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"downloaded or read \(no connection to 127.0.0.1\); give the file"):
        load_backbone(NAME)
    assert time.monotonic() - start < 5 and not caplog.records


def test_cached_weights_need_no_network(tmp_path, monkeypatch):
    place = tmp_path / f"models--timm--{NAME}"
    (place / "snapshots" / "0").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0")
    made = timm.create_model(NAME)
    save_file(made.state_dict(), place / "snapshots" / "0" / "model.safetensors")
    monkeypatch.setattr(constants, "ENDPOINT", closed())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # also if there is a network
    found = load_backbone(NAME)
    assert torch.equal(found.blocks[0].mlp.fc1.weight, made.blocks[0].mlp.fc1.weight)


def test_a_reachable_hub_is_used_without_log_messages(monkeypatch):
    logger = logging.getLogger("huggingface_hub.utils._http")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        before = logger.getEffectiveLevel()
        with hub.reachable_hub(NAME):
            assert not logger.isEnabledFor(logging.WARNING), "it does not log that it tries again"
        assert logger.getEffectiveLevel() == before


def test_the_obstacle_is_named_at_once_without_a_password(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    start = time.monotonic()
    with monkeypatch.context() as inside:
        inside.setenv("all_proxy", closed().replace("://", "://user:secret@"))
        with pytest.raises(WeightsError, match=r"no connection to the proxy 127.0.0.1:\d+, ") as caught:
            load_backbone(NAME)
        assert "secret" not in str(caught.value)
    with monkeypatch.context() as inside:
        inside.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(WeightsError, match="HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, and they are not in /"):
            load_backbone(NAME)
    assert time.monotonic() - start < 20


def test_a_proxy_is_tried_only_if_it_is_for_the_hub(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{server.getsockname()[1]}")
        with hub.reachable_hub(NAME):
            pass
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("http_proxy", closed())
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with hub.reachable_hub(NAME):
            pass

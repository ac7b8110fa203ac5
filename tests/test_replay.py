"""Replays of golden trajectories. Those of the released implementation are not part of the project."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import replay
import torch

FILES = sorted(Path(os.environ.get("VPTSP_GOLDEN", Path(__file__).parents[2] / "shared" / "golden")).glob("*.npz"))


@pytest.mark.skipif(not FILES, reason="no golden trajectories; name their folder with VPTSP_GOLDEN")
def test_golden_trajectories(capsys):
    assert replay.main([str(path) for path in FILES]) == 0, capsys.readouterr().out
    assert replay.main(["--host", *map(str, FILES)]) == 0, capsys.readouterr().out


def own_trajectory(path, **changes):
    """Write a file in the golden layout, of a random model of ours. Its learning rates are zero."""
    golden = {
        "n_classes": 6, "batch_size": 4, "samples_per_class": 2, "embed_dim": 8, "num_prompt": 2, "prompt_depth": 2,
        "prompt_block_step": 0, "num_p_prompt": 2, "p_prompt_depth": 2, "prompt_p_block_step": 1,
        "proxy_bias_ratio": 0.5, "lr": 0.0, "lr_proxy": 0.0, "decay": 0.0, "optim": "sgd", "semantic_mix_type": "mix",
        "prompt_memory_bank": False, "vit_bitfit": False, "rnn_dropout": 0.0, "proxy_mix_keep_ratio": 0.8,
        "num_heads": 2,
    } | changes  # fmt: skip
    torch.manual_seed(0)
    backbone = replay.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0, global_pool="token"
    )
    data = {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
    data["images"], data["labels"] = torch.randn(2, 4, 3, 16, 16), torch.tensor([[0, 0, 3, 3], [5, 5, 1, 1]])
    model = replay.MetricModel(replay.run_config(golden), backbone.eval().requires_grad_(False), 6)
    data |= {f"init.{k}": v.clone() for k, v in replay.named(model).items() if not k.startswith("backbone.")}
    optimizer, losses = replay.make_optimizers(model)[0], []
    with torch.no_grad():
        model.class_prompts.swap_in(data["labels"][0][::2], optimizer)
        rows = model.class_prompts(data["labels"][0][::2])
        data["step0.embeddings"], p = model.vit(data["images"][0], rows)
        kept = model.proxies.state.clone()
        data["step0.proxies_unnormalised"] = model.proxies(p, data["labels"][0][::2])
        model.proxies.state.copy_(kept)
        for images, labels in zip(data["images"], data["labels"], strict=True):
            model.class_prompts.swap_in(labels[::2], optimizer)
            losses.append(model.loss(images, labels))
        data["losses"] = torch.stack(losses)
        data |= {f"final.{k}": v.clone() for k, v in replay.named(model).items()}
        data["final.embeddings_of_step0_images"] = model(data["images"][0])
    np.savez(path, config=json.dumps(golden), **{k: v.detach().numpy() for k, v in data.items()})


def test_the_documented_command_runs_on_its_own(tmp_path):
    """As a user types it, without the imports of a test runner."""
    own_trajectory(tmp_path / "true.npz")
    script = Path(replay.__file__)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "true.npz")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0 and "within" in done.stdout, done.stderr


@pytest.mark.parametrize("host", [[], ["--host"]], ids=["device", "host"])
def test_replay_of_rowwise_class_prompts(tmp_path, monkeypatch, host):
    own_trajectory(tmp_path / "true.npz", prompt_memory_bank=True)
    moved = []
    real = replay.HostPrompts.swap_in
    monkeypatch.setattr(replay.HostPrompts, "swap_in", lambda *args: moved.append(1) or real(*args))
    assert replay.main([*host, str(tmp_path / "true.npz")]) == 0
    assert bool(moved) == bool(host)


def test_replay_passes_a_true_file_and_fails_a_wrong_one(tmp_path, capsys):
    own_trajectory(tmp_path / "true.npz")
    assert replay.main([str(tmp_path / "true.npz")]) == 0
    for key in ("losses", "final.proxy_state", "final.prompts.1", "final.embeddings_of_step0_images"):
        with np.load(tmp_path / "true.npz") as file:
            content = dict(file)
        content[key] = content[key] * 1.001
        np.savez(tmp_path / "wrong.npz", **content)
        assert replay.main([str(tmp_path / "wrong.npz")]) == 1, key
    capsys.readouterr()
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    assert replay.main([str(tmp_path / "broken.npz")]) == 2
    assert replay.main([str(tmp_path / "absent.npz")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2


@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_the_file_decides_the_pooling(tmp_path, pooling):
    own_trajectory(tmp_path / "file.npz", vit_global_pooling=pooling)
    with np.load(tmp_path / "file.npz") as file:
        golden = json.loads(str(file["config"]))
        data = {key: torch.from_numpy(file[key]) for key in file.files if key != "config"}
    model = replay.build(data, golden)
    tokens = model.vit.backbone.forward_features(data["images"][0])  # by timm, without prompts
    expected = tokens[:, 0] if pooling == "token" else tokens[:, 1:].mean(1)
    pooled = model.vit.pooled(data["images"][0], [[None] * len(model.vit.backbone.blocks)])
    torch.testing.assert_close(pooled[:, 0], expected)
    assert replay.main([str(tmp_path / "file.npz")]) == 0


@pytest.mark.parametrize(
    "option, value, said",
    [
        ("vit_class_pooling", "max", "does not know the option vit_class_pooling"),
        ("vit_global_pooling", "max", "vit_global_pooling = 'max' cannot be replayed, only 'token' or 'avg'"),
        ("semantic_mix_type", "lstm", "semantic_mix_type = 'lstm' cannot be replayed"),
        ("mix_precision", True, "mix_precision = True cannot be replayed, only False"),
        ("loss_oproxy_neg_alpha", 16.0, "loss_oproxy_neg_alpha = 16.0 cannot be replayed, only 32.0"),
        ("full_fine_tune", True, "full_fine_tune = True cannot be replayed"),
    ],
)
def test_an_unknown_option_or_value_is_refused_by_name(tmp_path, capsys, option, value, said):
    own_trajectory(tmp_path / "file.npz")
    with np.load(tmp_path / "file.npz") as file:
        arrays = {key: file[key] for key in file.files if key != "config"}
        golden = json.loads(str(file["config"])) | {option: value}
    np.savez(tmp_path / "file.npz", config=json.dumps(golden), **arrays)
    assert replay.main([str(tmp_path / "file.npz")]) == 2
    assert said in capsys.readouterr().err

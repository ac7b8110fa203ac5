"""Figure 4: midway is the first half of the whole run, and proxies are mixed as in the loss."""

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from vptsp_core.figures import gap
from vptsp_core.figures.umap import plane_with_proxies
from vptsp_core.method.presets import preset
from vptsp_core.paper.figure4 import learned_proxies, proxies_of, run_moments, untouched
from vptsp_core.runs.folder import WEIGHTS
from vptsp_core.runs.run import build_model, run


def test_midway_is_the_first_half_of_the_whole_run(tmp_path):
    config = preset("smoke", epochs=4, eval_start=1, cosine_T=4, steps_per_epoch=1)
    moments = run_moments(config)
    assert {name: (c.epochs, c.selection) for name, c in moments.items()} == {"midway": (2, "last"), "end": (4, "last")}
    midway, end = (run(c, results=tmp_path, progress=False) for c in moments.values())
    first = ["epoch", "loss", "lr", "lr_proxy", "R@1", "MAP@R"]
    pd.testing.assert_frame_equal(midway.history[first], end.history[first][:2], check_exact=True)
    assert end.history["lr"].is_monotonic_decreasing and end.history["lr"].nunique() == 4  # the rate changes
    kept = safetensors.torch.load_file(midway.path / WEIGHTS)
    proxies = learned_proxies(midway)
    np.testing.assert_allclose(proxies["P"], kept["proxies.state"].numpy(), atol=1e-6)
    _, start = untouched(config, 100)
    assert np.abs(start["O"] - proxies["O"]).max() > 1e-3  # two steps have changed it


def test_a_run_of_one_epoch_has_no_middle():
    assert list(run_moments(preset("smoke"))) == ["end"]


def test_the_start_is_the_model_before_its_first_step():
    config = preset("smoke", seed=5)
    embedder, proxies = untouched(config, 100)
    model = build_model(config, 100, torch.device("cpu")).eval()
    images = torch.randn(2, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        np.testing.assert_allclose(embedder.embed(images), model(images).numpy(), atol=1e-5)
    np.testing.assert_allclose(proxies["P"], model.proxies.state.numpy(), atol=1e-6)
    assert abs((proxies["O"] * proxies["P"]).sum(1)).mean() < 0.2  # two random directions of 96 dimensions


def test_proxies_are_mixed_without_being_normalised_first():
    state = {"proxies.bias": torch.tensor([[0.0, 2.0]]), "proxies.state": torch.tensor([[1.0, 0.0]])}
    found = proxies_of(state, alpha=0.6)
    np.testing.assert_allclose(found["O"], [[0, 1]])
    np.testing.assert_allclose(found["Q"], [[0.4 / np.hypot(0.4, 1.2), 1.2 / np.hypot(0.4, 1.2)]], rtol=1e-6)


def test_images_and_proxies_keep_their_places_on_a_common_map(monkeypatch):
    monkeypatch.setattr("vptsp_core.figures.umap.umap_plane", lambda vectors, seed=0: vectors[:, :2] * 10)
    images, proxies = np.arange(12.0).reshape(4, 3), {"O": -np.ones((2, 3)), "P": np.ones((2, 3))}
    points, marks = plane_with_proxies(images, proxies)
    np.testing.assert_array_equal(points, images[:, :2] * 10)
    assert list(marks) == ["O", "P"] and marks["O"].tolist() == [[-10, -10]] * 2 and (marks["P"] == 10).all()


def test_the_gap_is_drawn_for_every_kind_and_moment():
    columns = pd.MultiIndex.from_product([["O", "P", "Q"], ["own centroid", "nearest other", "margin"]])
    table = pd.DataFrame(np.arange(27.0).reshape(3, 9) / 27, columns=columns)
    fig = gap.gap(table, [0, 2, 4])
    assert [ax.get_title() for ax in fig.axes] == ["ordinary proxy O", "semantic proxy P", "mixed proxy Q"]
    assert [text.get_text() for text in fig.legends[0].get_texts()][2].startswith("margin")  # the shaded area
    for ax, kind in zip(fig.axes, "OPQ", strict=True):
        own, other = ax.lines
        assert list(own.get_xdata()) == [0, 2, 4] and own.get_ydata() == pytest.approx(table[kind, "own centroid"])
        assert other.get_ydata() == pytest.approx(table[kind, "nearest other"])

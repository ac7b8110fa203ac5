"""The soak script notices growth, in artificial samples and in a short real run that leaks."""

import gc
import os

import numpy as np
import pandas as pd
import pytest
import soak

from vptsp_core.data.glyphs import load_glyphs


@pytest.mark.parametrize(
    ("name", "grown", "noticed"),
    [
        ("memory, MiB", lambda step: np.minimum(step, 4000) * 0.1, False),  # the warm-up
        ("memory, MiB", lambda step: step * 0.0002, False),
        ("memory, MiB", lambda step: step * 0.0003, True),
        ("open files", lambda step: step // 100 % 2 * 6, False),  # they open and close
        ("open files", lambda step: step // 5000, True),
        ("threads", lambda step: step // 5000, True),
        ("processes", lambda step: step // 5000, True),
    ],
)
def test_growth_above_the_bound_is_noticed(name, grown, noticed):
    steps = np.arange(50, 20_001, 50)
    flat = {"memory, MiB": 500 + np.random.default_rng(0).normal(0, 0.2, len(steps)), "open files": 6.0, "threads": 2.0}
    samples = pd.DataFrame({**flat, "processes": 1.0}, index=steps)
    samples[name] += grown(steps)
    found = soak.growth(samples)["grows"]
    assert list(found.index[found.astype(bool)]) == ([name] if noticed else [])


def test_a_real_leak_is_noticed_and_nothing_else(monkeypatch):
    monkeypatch.setattr(load_glyphs, "__defaults__", (2, 40, 0))  # images a class
    held = []
    gc.freeze()  # each sample collects garbage: skip the objects of all modules

    def leak():
        held.append((os.dup(0), np.ones(2**19)))  # a file and 4 MiB

    try:
        found = soak.growth(soak.train(16, 1, epoch=8, leak=leak))
    finally:
        gc.unfreeze()
        for file, _ in held:
            os.close(file)
    assert found["grows"].to_dict() == {"memory, MiB": True, "open files": True, "threads": False, "processes": False}
    assert 2000 < found.loc["memory, MiB", "in 1,000 steps"] < 8000
    assert found.loc["open files", "in 1,000 steps"] == 1000

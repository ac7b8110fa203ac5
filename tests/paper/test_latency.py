"""Table 10: its cells, their forms, and shares of full fine-tuning."""

import numpy as np
import pandas as pd
import pytest

from vptsp_core.errors import ConfigError
from vptsp_core.figures import latency
from vptsp_core.paper import bench
from vptsp_core.paper.bench import turns
from vptsp_core.paper.latency import latency_benches, latency_configs, measured_latency, paper_latency


def test_there_is_a_cell_for_every_one_of_the_papers():
    for profile in ("demo", "paper"):
        configs = latency_configs(profile, batch=16)  # the batch is the table's column
        assert {f"{method}, {batch}" for method, batch in configs} == set(paper_latency()["row"])
        assert all(config.batch == batch and config.weights == "random" for (_, batch), config in configs.items())
    assert configs["VPTSP", 64].prompts == 80 and configs["VPTSP", 64].accumulator == "gru"
    assert configs["Adapter", 32].method == "adapter" and not configs["VPT", 32].bitfit
    assert latency_configs("smoke", precision="bf16")["VPT", 32].precision == "bf16"
    with pytest.raises(ConfigError, match="profile = 'x'"):
        latency_configs("x")


def test_steps_of_several_runs_are_measured(monkeypatch):
    configs = latency_configs("smoke", batches=[32])
    chosen = {key: configs[key] for key in [("Linear probing", 32), ("Full fine-tuning (PA)", 32)]}
    benches = latency_benches(chosen)
    assert [key[2] for key in benches] == ["eager", "textbook"] * 2
    assert [key[2] for key in latency_benches(chosen, compiled=True)] == ["eager", "compiled", "textbook"] * 2
    eager = {key: make for key, make in benches.items() if key[2] == "eager"}
    slow = iter([9.0, 9.0, 4.0, 40.0, 2.0, 20.0, 1.0, 10.0])
    monkeypatch.setattr(turns, "step_times", lambda step, device, count: turns.Turn([next(slow)]))
    found = bench.measure_steps(eager, device="cpu", steps=3, warmup=1, progress=False)
    probing, full = found.values()
    assert list(found) == list(eager)
    assert (probing["ms"], probing["ms 25 %"], probing["ms 75 %"], probing["steps"]) == (2, 1.5, 3, 3)
    assert full["ms"] == 20 and full["memory_MB"] > 2 * probing["memory_MB"] > 0
    with pytest.raises(ConfigError, match="steps = 0"):
        bench.measure_steps(eager, device="cpu", steps=0)


def test_shares_are_of_full_fine_tuning_at_the_same_batch():
    paper = paper_latency().set_index("row")
    assert paper.loc["VPTSP, 64", "%"] == pytest.approx(100 * 260 / 345)
    assert paper.loc["Linear probing, 32", "%"] == pytest.approx(100 * 115 / 191)
    full = "Full fine-tuning (PA)"
    ours = measured_latency({
        (full, 32, "eager"): {"ms": 50.0}, ("VPT", 32, "eager"): {"ms": 20.0}, (full, 32, "textbook"): {"ms": 100.0},
        (full, 64, "eager"): {"ms": 80.0}, ("VPT", 64, "eager"): {"ms": 60.0}, ("VPT", 32, "textbook"): {"ms": 90.0},
    })  # fmt: skip
    eager, textbook = (ours[ours["form"] == form] for form in ("eager", "textbook"))
    assert list(eager["%"]) == [100, 40, 100, 75] and eager["row"].iloc[1] == "VPT, 32"
    assert list(textbook["%"]) == [100, 90], "each form by itself"


def test_the_figure_has_every_cell_on_its_line():
    paper = paper_latency()
    ours = paper.assign(**{"ms": paper["ms"] * 2, "ms 25 %": paper["ms"], "ms 75 %": paper["ms"] * 4})
    fig = latency.latency(ours, paper, "here")
    first, second, both = fig.axes
    names = [label.get_text() for label in first.get_yticklabels()]
    assert names == list(dict.fromkeys(paper["method"]))
    for at, batch in enumerate((32, 64)):
        line = first.containers[at].lines[0]
        of_batch = ours[ours["batch"] == batch]
        assert list(line.get_xdata()) == list(of_batch["ms"]) and first.containers[at].has_xerr
        assert [names[round(y)] for y in line.get_ydata()] == list(of_batch["method"])
        assert list(second.containers[at].lines[0].get_xdata()) == list(of_batch["ms"] / 2)
    theirs, mine = (both.containers[at].lines[0].get_ydata() for at in (0, 2))
    assert list(theirs - mine) == pytest.approx([latency.BELOW] * 6)  # equal percentages do not hide each other
    assert len(both.containers) == 4 and isinstance(paper, pd.DataFrame)


def widths(ax) -> list[float]:
    return [bar.get_width() for bar in ax.patches if bar.get_width() > 0]


def test_the_figure_of_forms_has_a_bar_for_everything_that_was_measured():
    cells = [("VPT", 32, "eager"), ("VPT", 32, "released"), ("VPT", 64, "eager"), ("Adapter", 64, "eager")]
    measured = pd.DataFrame(cells, columns=["method", "batch", "form"]).assign(
        **{
            "ms": [4.0, 8, 5, 6],
            "ms 25 %": [3.0, 7, 4, 5],
            "ms 75 %": [6.0, 9, 8, 7],
            "memory_MB": [1.0, float("nan"), 2, 3],
        }
    )
    fig = latency.forms(measured, "here")
    (first, _, second, memory) = fig.axes
    assert [widths(ax) for ax in (first, second, memory)] == [[4, 8], [5, 6], [2, 3]]
    assert [label.get_text() for label in second.get_yticklabels()] == ["VPT", "Adapter"]
    ends = [(np.nanmin(line.get_xdata()), np.nanmax(line.get_xdata())) for line in first.lines]
    assert (3, 6) in ends and (7, 9) in ends, "quartiles"
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["eager", "released"]

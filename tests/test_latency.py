"""Table 10: its cells, the turns they take, and shares of full fine-tuning."""

import pandas as pd
import pytest

from vptsp_core import bench
from vptsp_core.bench.latency import latency_configs, measured_latency, paper_latency
from vptsp_core.errors import ConfigError
from vptsp_core.plots import latency as plots_latency


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


def test_cells_take_turns_and_the_warm_up_is_dropped():
    order: list[str] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def milliseconds(self) -> float:
            order.append(self.name)
            return float(len(order))

    times = bench._by_turns({"a": Fake("a"), "b": Fake("b")}, range(3), warmup=1)  # type: ignore[dict-item]
    assert order == ["a", "b"] * 3 and times == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_steps_of_several_runs_are_measured(monkeypatch):
    configs = latency_configs("smoke", batches=[32])
    chosen = {key: configs[key] for key in [("Linear probing", 32), ("Full fine-tuning (PA)", 32)]}
    slow = iter([9.0, 9.0, 4.0, 40.0, 2.0, 20.0, 1.0, 10.0])
    monkeypatch.setattr(bench.StepBench, "milliseconds", lambda self: next(slow))
    found = bench.measure_steps(chosen, device="cpu", steps=3, warmup=1, progress=False)
    probing, full = found.values()
    assert list(found) == list(chosen)
    assert (probing["ms"], probing["ms 25 %"], probing["ms 75 %"], probing["steps"]) == (2, 1.5, 3, 3)
    assert full["ms"] == 20 and full["memory_MB"] > 2 * probing["memory_MB"] > 0
    with pytest.raises(ConfigError, match="steps = 0"):
        bench.measure_steps(chosen, steps=0)


def test_shares_are_of_full_fine_tuning_at_the_same_batch():
    paper = paper_latency().set_index("row")
    assert paper.loc["VPTSP, 64", "%"] == pytest.approx(100 * 260 / 345)
    assert paper.loc["Linear probing, 32", "%"] == pytest.approx(100 * 115 / 191)
    ours = measured_latency({
        ("Full fine-tuning (PA)", 32): {"ms": 50.0}, ("VPT", 32): {"ms": 20.0},
        ("Full fine-tuning (PA)", 64): {"ms": 80.0}, ("VPT", 64): {"ms": 60.0},
    })  # fmt: skip
    assert list(ours["%"]) == [100, 40, 100, 75] and ours["row"].iloc[1] == "VPT, 32"


def test_the_figure_has_every_cell_on_its_line():
    paper = paper_latency()
    ours = paper.assign(**{"ms": paper["ms"] * 2, "ms 25 %": paper["ms"], "ms 75 %": paper["ms"] * 4})
    fig = plots_latency.latency(ours, paper, "here")
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
    assert list(theirs - mine) == pytest.approx([plots_latency.BELOW] * 6)  # equal percentages do not hide each other
    assert len(both.containers) == 4 and isinstance(paper, pd.DataFrame)

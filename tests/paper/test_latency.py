"""Table 10 and `bench step`: cells, forms, turns, ratios, memory. No test measures a time."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.figures import latency
from vptsp_core.method.presets import preset
from vptsp_core.paper import step_bench
from vptsp_core.paper import step_cost as cost
from vptsp_core.paper.latency import latency_benches, latency_configs, measured_latency, paper_latency
from vptsp_core.system.devices import device_name

CPU = torch.device("cpu")


def test_every_cell_of_the_paper_has_a_run():
    for profile in ("demo", "paper"):
        configs = latency_configs(profile)
        assert {f"{method}, {batch}" for method, batch in configs} == set(paper_latency()["row"])
        assert all(config.batch == batch and config.weights == "random" for (_, batch), config in configs.items())
    assert configs["VPTSP", 64].prompts == 80 and configs["VPTSP", 64].accumulator == "gru"
    assert configs["Adapter", 32].method == "adapter" and not configs["VPT", 32].bitfit
    assert latency_configs("smoke", precision="bf16")["VPT", 32].precision == "bf16"
    with pytest.raises(ConfigError, match="contain batch, weights, which table 10 sets itself"):
        latency_configs("smoke", batch=16, weights="random")


def test_every_cell_is_measured_in_every_form():
    configs = latency_configs("smoke")
    chosen = {key: configs[key] for key in [("Linear probing", 32), ("VPT", 64)]}
    assert [key[2] for key in latency_benches(chosen)] == ["eager", "textbook"] * 2
    assert [key[2] for key in latency_benches(chosen, compiled=True)] == ["eager", "compiled", "textbook"] * 2
    assert "released" in {key[2] for key in latency_benches(configs, reference="clone")}
    other = latency_configs("smoke", semantics="paper")
    with pytest.raises(ConfigError, match="reference = clone: the released implementation has none of these runs"):
        latency_benches(other, reference="clone")


class Counted:
    """A bench without a model. `take_turn` gets its times from ``times``."""

    def __init__(self, name, order, times, **facts):
        self.images, self.kept, self.facts = torch.zeros(8, 1), lambda: None, lambda: facts
        self.times, self.step = iter(times), lambda: order.append(name)


def test_steps_take_turns_and_ratios_are_taken_within_each(monkeypatch):
    order: list[str] = []
    made = {
        "eager": Counted("eager", order, [50, 50, 10, 20, 10]),
        "slow": Counted("slow", order, [90, 90, 20, 60, 40], precision="float32"),
        "compiled": Counted("compiled", order, [], compile_s=None),  # could not be compiled
    }

    def take_turn(step, device):
        step()
        ms = next(made[order[-1]].times)
        return cost.Turn([ms], 2 * ms)

    monkeypatch.setattr(cost, "take_turn", take_turn)
    makers = {name: (lambda bench=bench: bench) for name, bench in made.items()}
    found = cost.measure_steps(makers, device="cpu", steps=3, progress=False, base="eager")
    assert order == ["eager", "slow", "compiled"] + ["eager", "slow"] * 5, "each one takes a step for its memory first"
    assert list(found) == ["eager", "slow"], "a step that could not be compiled is left out"
    slow = found["slow"]
    assert (slow["ms"], slow["ms 25 %"], slow["ms 75 %"], slow["steps"]) == (40, 30, 50, 3)
    assert (slow["ratio"], slow["ratio 25 %"], slow["ratio 75 %"]) == (3, 2.5, 3.5) and found["eager"]["ratio"] == 1
    assert slow["images/s"] == 200 and slow["precision"] == "float32" and slow["memory_MB"] is None
    with pytest.raises(ConfigError, match="steps = 0 must be at least 1"):
        cost.measure_steps(makers, device="cpu", steps=0)


def test_the_cost_of_a_turn_is_processor_time(monkeypatch):
    clock, busy = 0.0, 0.0

    def step(waits, works):
        nonlocal clock, busy
        clock, busy = clock + waits + works, busy + works

    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: clock, process_time=lambda: busy))
    turn = cost.take_turn(partial(step, waits=0.5, works=0.25), CPU)
    assert turn.ms == [750] and turn.cost == 250


def test_the_textbook_form_has_our_loss_in_the_trunks_precision():
    for precision, bound in (("fp32", 1e-5), ("bf16", 0.05)):
        config = preset("smoke", precision=precision, batch=4)
        ours, textbook = (step_bench.StepBench(config, form, "cpu") for form in ("eager", "textbook"))
        mine, other = (float(bench.kept()[0]().detach()) for bench in (ours, textbook))
        assert mine == pytest.approx(other, rel=bound)
        textbook.step()
        assert float(textbook.kept()[0]().detach()) != other, "it learns"
        assert textbook.facts() == {"precision": {"fp32": "float32", "bf16": "bfloat16"}[precision]}


def test_classes_are_those_of_the_training_set_but_fewer_on_a_cpu():
    assert step_bench.training_classes(preset("sop-vits16"), torch.device("cuda")) == 11_318
    assert step_bench.training_classes(preset("sop-vits16"), CPU) == 256
    assert step_bench.training_classes(preset("smoke", batch=128), CPU) == 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--forms", "textbook"], "--forms textbook must name eager"),
        (["--forms", "eager,fast"], "--forms = 'fast' must be one of eager, compiled, textbook"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(VptspError, match=message):
        cost.main(["step", "--preset", "smoke", "--device", "cpu", "--forms", "eager", *options])


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    file = tmp_path / "step.json"
    command = ["step", "--preset", "smoke", "--set", "batch=4", "--device", "cpu", "--steps", "1"]
    assert cost.main([*command, "--forms", "eager,textbook", "--json", str(file)]) == 0
    found, text = json.loads(file.read_text()), capsys.readouterr().out
    assert text.startswith(f"batches of 4, 100 classes, {device_name(CPU)}, 1 threads, torch ")
    head, eager, textbook = (line.split() for line in text.splitlines()[1:4])
    assert head[0] == "ms" and (eager[0], textbook[0]) == ("eager", "textbook")
    assert found["forms"]["eager"]["ratio"] == 1 and f"{found['forms']['textbook']['ms']:,.4g}" in textbook
    assert 0 < found["forms"]["eager"]["memory_MB"] < found["forms"]["textbook"]["memory_MB"]


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
    assert list(textbook["%"]) == [100, 90], "each form has its own shares"


def test_the_figure_has_every_cell_on_its_line():
    paper = paper_latency()
    ours = paper.assign(**{"ms": paper["ms"] * 2, "ms 25 %": paper["ms"], "ms 75 %": paper["ms"] * 4})
    fig = latency.latency(ours, paper, "here")
    first, second, both = fig.axes
    names = [label.get_text() for label in first.get_yticklabels()]
    assert names == list(dict.fromkeys(paper["method"]))
    mine, theirs, shares = ([line for line in ax.lines if line.get_marker() in "os" and len(line.get_xdata())]
                            for ax in (first, second, both))  # fmt: skip
    for at, batch in enumerate((32, 64)):
        of_batch = ours[ours["batch"] == batch]
        assert list(mine[at].get_xdata()) == list(of_batch["ms"])
        assert [names[round(y)] for y in mine[at].get_ydata()] == list(of_batch["method"])
        assert list(theirs[at].get_xdata()) == list(of_batch["ms"] / 2)
    places = np.stack([line.get_ydata() for line in shares])
    assert len(places) == 4 and (np.diff(places, axis=0) > 0).all(), "equal percentages do not hide each other"
    drawn = [line.get_xdata() for line in first.lines if len(line.get_xdata())]
    ends = [(np.nanmin(xs), np.nanmax(xs)) for xs in drawn]
    assert (ours["ms 25 %"][0], ours["ms 75 %"][0]) in ends, "quartiles"


def widths(ax) -> list[float]:
    return [bar.get_width() for bar in ax.patches if bar.get_width() > 0]


def test_the_figure_of_forms_has_a_bar_for_every_measured_cell():
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

"""`bench step` and `bench epoch`: turns, spreads, ratios, operations by hand, the table. No test asserts on a clock."""

import json
import math
import time
from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vptsp_core.data import load_benchmark
from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.method.presets import preset
from vptsp_core.paper import bench
from vptsp_core.paper.bench import command, epoch, forms, terminal, turns
from vptsp_core.paper.bench.epoch import measure_epoch
from vptsp_core.paper.bench.flops import PRODUCTS, product, step_flops
from vptsp_core.runs import compile as compiling

CPU = torch.device("cpu")
OURS = ("eager", "textbook")  # compiling takes a minute


def test_forms_take_turns_and_the_warm_up_is_dropped():
    order: list[str] = []
    steps = {name: partial(order.append, name) for name in "ab"}
    times = turns.by_turns(steps, CPU, range(3), warmup=1, count=2)
    assert order == ["a", "a", "b", "b"] * 3
    assert {name: [len(turn) for turn in of_name] for name, of_name in times.items()} == {"a": [2, 2], "b": [2, 2]}


def test_spread_and_ratios():
    assert turns.spread([4, 1, 2, 3, 9], "x") == {"x": 3, "x 25 %": 2, "x 75 %": 4, "x min": 1, "x max": 9}
    assert turns.ratios([[2, 4], [9, 9]], [[1, 1], [3, 6]]) == [3, 2]
    of_turns, base = [turns.Turn([1], 30), turns.Turn([1], 8)], [turns.Turn([9], 10), turns.Turn([9], 16)]
    assert turns.cpu_ratios(of_turns, base) == [3, 0.5]
    assert turns.cpu_ratios([turns.Turn([1])], [turns.Turn([1])]) == [], "a GPU"


def test_processor_time_is_this_processes_own():
    asleep = turns.step_times(partial(time.sleep, 0.2), CPU)
    busy = turns.step_times(lambda: sum(range(10_000_000)), CPU)
    assert len(asleep) == 1 and asleep.cpu < busy.cpu


@pytest.mark.parametrize(("steps", "a_turn", "kind"), [(7, 1, "cpu"), (7, 5, "cuda"), (3, 3, "cuda")])
def test_a_turn_on_a_gpu_is_several_steps(monkeypatch, steps, a_turn, kind):
    monkeypatch.setattr(turns, "step_times", lambda step, device, count: turns.Turn([1.0] * count))
    taken = bench.timed_turns({"a": lambda: None}, torch.device(kind), steps, warmup=2, progress=False)["a"]
    assert [len(turn) for turn in taken] == [a_turn] * math.ceil(steps / a_turn)


def hand(config, classes: int, *, full: bool) -> int:
    """Operations of a ViT, its head and Proxy-Anchor: 24 T D^2 + 4 T^2 D a block and image, backward twice that where
    weights learn; nothing flows back into frozen blocks that have nothing to learn before them."""
    width, depth, side, tokens, patch = 96, 6, 40, 26, 8
    block = 24 * tokens * width**2 + 4 * tokens**2 * width
    stem = 2 * (side // patch) ** 2 * (3 * patch**2) * width
    head, loss = 2 * width * config.embed_dim, 2 * classes * config.embed_dim
    trunk = 3 * depth * block + 2 * stem if full else depth * block + stem  # images need no gradient
    return config.batch * (trunk + 3 * head + 3 * loss)


@pytest.mark.parametrize("method", ["linear", "full"])
def test_operations_are_those_of_the_formula(method):
    config = preset("smoke", method=method, bitfit=False, pool="avg", batch=4)
    made = bench.StepBench(config, device="cpu", classes=7)
    assert step_flops(made.model, made.images, made.labels) == hand(config, 7, full=method == "full")
    assert all(parameter.grad is None for parameter in made.model.parameters())


def test_prompts_are_counted_as_keys_and_values_and_what_towers_share_once():
    def forward(**changes) -> int:
        config = preset("smoke", bitfit=False, pool="avg", batch=4, **changes)
        model = bench.StepBench(config, device="cpu", classes=7).model
        with FlopCounterMode(display=False) as counter, written_out():
            model.towers(torch.zeros(4, 3, 40, 40), torch.arange(4))
        return counter.get_total_flops()

    written_out = partial(sdpa_kernel, SDPBackend.MATH)  # the counter does not know the CPU's own attention
    width, tokens, depth, n, m = 96, 26, 6, 3, 2
    plain, vpt = forward(method="linear"), forward(method="vpt", prompts=n)
    assert vpt - plain == depth * (4 * n * width**2 + 4 * 4 * tokens * n * width)  # shared: projected once a batch
    both = forward(method="vptsp", prompts=n, class_prompts=m)
    block = 24 * tokens * width**2 + 4 * tokens**2 * width
    head, own = 2 * width * 96, depth * (4 * m * width**2 + 4 * tokens * m * width)
    shared = 6 * tokens * width**2  # QKV of the first block, and the stem, which `plain` has once
    assert both - vpt == 4 * (depth * block - shared + head + own)


def test_the_product_has_the_shape_of_the_mlp():
    made = bench.StepBench(preset("smoke", batch=4), device="cpu", classes=7)
    multiply, operations = product(made.model, made.images)
    assert operations == 2 * (4 * 26) * 96 * 384 * PRODUCTS
    with FlopCounterMode(display=False) as counter:
        multiply()
    assert counter.get_total_flops() == operations


@pytest.fixture
def clock(monkeypatch):
    """What a step of eager, textbook and the product takes, in milliseconds: a warm-up turn and three more."""
    taken = iter([1.0] * 3 + [10.0, 20.0, 0.5] + [20.0, 60.0, 0.5] + [10.0, 40.0, 0.5])
    monkeypatch.setattr(turns, "step_times", lambda step, device, count: turns.Turn([next(taken)] * count))


def test_forms_are_compared_within_each_turn(clock):
    found = forms.compare_forms(preset("smoke"), device="cpu", steps=3, warmup=1, forms=OURS)
    eager, textbook = found["forms"]["eager"], found["forms"]["textbook"]
    assert (found["base"], found["steps"], found["turns"], found["classes"]) == ("eager", 3, 3, 100)
    assert (eager["ms"], textbook["ms"], eager["ratio"]) == (10, 40, 1)
    assert (textbook["ratio"], textbook["ratio min"], textbook["ratio max"]) == (3, 2, 4)
    assert eager["images/s"] == 1600 and eager["memory_MB"] < textbook["memory_MB"]
    rate = 2 * 16 * 26 * 96 * 384 * PRODUCTS / 0.5e-3 / 1e12
    assert found["product_TFLOP/s"] == pytest.approx(rate)
    assert eager["share"] == pytest.approx(found["GFLOP"] / 10 / rate)
    assert textbook["share"] == pytest.approx(eager["share"] / 4), "the same useful work"
    json.dumps(found)
    text = forms.table(found).splitlines()
    assert text[0].startswith("batches of 16, 100 classes, float32, cpu") and "3 steps of each in 3 turns" in text[0]
    assert text[1].split()[:2] == ["ms", "25"] and len({len(line) for line in text[1:4]}) == 1
    assert text[2].startswith("eager") and text[3].split()[-5:] == ["3.00", "2.50", "3.50", "2.00", "4.00"]
    assert "to eager's" in text[5] and "CPU ratio" not in eager
    eager |= turns.spread([1.0], "CPU ratio")
    textbook |= turns.spread([1.0, 1.25, 1.5], "CPU ratio")
    told = "processor time, and its quartiles: eager 1.00 (1.00 to 1.00), textbook 1.25 (1.12 to 1.38)"
    assert told in forms.table(found)


def test_the_table_tells_of_what_only_some_forms_have(clock):
    found = forms.compare_forms(preset("smoke"), device="cpu", steps=3, warmup=1, forms=OURS)
    found["forms"]["compiled"] = {**found["forms"]["eager"], "memory_MB": None, "compile_s": 12.34}
    found["forms"]["released"] = {**found["forms"]["textbook"], "loss_difference": 2.3e-6, "precision": "float32"}
    text = forms.table(found)
    assert "compiled: its first step took 12.3 s" in text
    assert "released: computed in float32; losses agree to 2e-06" in text
    assert next(line for line in text.splitlines() if line.startswith("compiled")).split()[7] == "-"


def test_a_form_that_could_not_be_compiled_is_left_out(clock, monkeypatch):
    class FallsBack(bench.StepBench):
        def __init__(self, config, form, *args, **options):
            super().__init__(config, "eager" if form == "compiled" else form, *args, **options)
            self.form = form

    monkeypatch.setattr(forms, "StepBench", FallsBack)
    found = forms.compare_forms(
        preset("smoke"), device="cpu", steps=3, warmup=1, forms=("eager", "compiled", "textbook")
    )
    assert list(found["forms"]) == ["eager", "textbook"]


def test_classes_are_those_of_the_training_set():
    assert forms.training_classes(preset("sop-vits16"), torch.device("cuda")) == 11_318
    assert forms.training_classes(preset("sop-vits16"), CPU) == 256
    assert forms.training_classes(preset("smoke", batch=128), CPU) == 128


def test_nothing_to_measure_is_refused():
    with pytest.raises(ConfigError, match="method = 'frozen' trains nothing"):
        forms.make_forms(preset("smoke", method="frozen", bitfit=False))
    with pytest.raises(ConfigError, match="form = 'fast' must be one of eager, compiled, textbook"):
        bench.StepBench(preset("smoke"), "fast")
    with pytest.raises(VptspError, match="--steps 0 must be at least 1"):
        command.main(["step", "--steps", "0"])
    with pytest.raises(VptspError, match="reference nowhere: no such folder"):
        command.main(["eval", "--reference", "nowhere", "--size", "inshop", "--device", "cpu", "--repeats", "1"])


def test_the_command_prints_a_table_and_writes_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "compare_forms", partial(forms.compare_forms, forms=OURS))
    file = tmp_path / "step.json"
    assert command.main(["step", "--preset", "smoke", "--device", "cpu", "--steps", "1", "--json", str(file)]) == 0
    assert capsys.readouterr().out.rstrip("\n") == forms.table(json.loads(file.read_text()))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_parts_of_an_epoch(tmp_path, monkeypatch, compiled):
    if compiled:  # what a long run on a GPU does; compiling itself takes a minute
        monkeypatch.setattr(epoch, "as_trains", lambda *run: "on")
        monkeypatch.setattr(compiling, "_missing_compiler", lambda device: "")
        monkeypatch.setattr(compiling, "compiled_loss", lambda model: model.loss)
    taken = iter([9.0, 3.0, 4.0, 2.0])  # the first steps, the steps alone, the epoch, the evaluation
    monkeypatch.setattr(epoch, "_seconds", lambda task, device: (task(), next(taken))[1])
    benchmark = load_benchmark("glyphs")
    found = measure_epoch(preset("smoke"), benchmark, tmp_path, device="cpu")
    assert (found["epoch s"], found["steps s"], found["data s"], found["evaluation s"]) == (6, 3, 1, 2)
    assert found["compiled"] == compiled and found.get("compile s") == (9 - epoch.FIRST * 1 if compiled else None)
    assert found["images/s"] == 3 * 16 / 4 and found["steps"] == 3
    assert found["evaluated images/s"] == len(benchmark.test) / 2


def test_searches_are_a_row_each(tmp_path, monkeypatch, capsys):
    found = {
        "items": 60502, "bare_s": 20.0, "metrics_s": 25.0, "ratio": 1.25, "ratios": [1.2, 1.3], "cpu_ratio": 1.1,
        "bare_mib": 400.0, "metrics_mib": 500.0, "bare_peak_mib": 800.5, "metrics_peak_mib": 1000.0,
    }  # fmt: skip
    monkeypatch.setattr(command, "benchmark_metrics", lambda *given: found)
    file = tmp_path / "eval.json"
    assert command.main(["eval", "--json", str(file)]) == 0
    assert json.loads(file.read_text()) == found
    ours = [
        "                   seconds  MiB more  MiB in all  times ours",
        "bare exact search       20       400       800.5         0.8",
        "our metrics             25       500       1,000           1",
    ]
    told = "our metrics take 1.25 times the bare search, 1.10 by processor time"
    assert capsys.readouterr().out.splitlines() == [*ours, told, "items   60,502", "ratios  1.2 to 1.3"]
    theirs = {"released_s": 62.5, "released_ratio": 2.5, "released_mib": 1.0, "released_peak_mib": 9.0}
    row = terminal.searches({**found, **theirs}).splitlines()[3]
    assert row == "released metrics      62.5         1           9         2.5"


def test_a_listing_says_each_figure_once():
    times = {"host": 2.0, "device": 1234.56}
    found = {"ms": times, "ratio": 0.123456, "turns": [2.5, 1.25], "classes": 12000, "gpu": True}
    assert terminal.listing(found).splitlines() == [
        "ms, host    2", "ms, device  1,235", "ratio       0.1235", "turns       1.25 to 2.5", "classes     12,000",
        "gpu         True",
    ]  # fmt: skip


def test_parts_of_an_epoch_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(command, "measure_epoch", lambda *given, device: {"epoch s": 6.0, "compiled": False})
    assert command.main(["epoch", "--preset", "smoke", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "epoch s   6\ncompiled  False\n"

"""``precision="auto"`` on CPUs with and without bf16 units."""

import pytest
import torch

from vptsp_core import preset, run
from vptsp_core.system import devices, portable
from vptsp_core.system.devices import autocast_dtype, bf16_speedup, choose_precision, trunk_dtype

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _clear_cache():
    devices._cpu_precision.cache_clear()
    yield
    devices._cpu_precision.cache_clear()


def simulate(monkeypatch, units, speedup):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(units, True))
    monkeypatch.setattr(devices, "bf16_speedup", lambda width: speedup)


@pytest.mark.parametrize(
    "units, speedup, dtype, reason",
    [
        (("amx_bf16", "avx512_bf16"), 12.0, torch.bfloat16, "amx_bf16 and avx512_bf16; a bf16 product is 12.0 times"),
        (("avx512_bf16",), 2.1, torch.bfloat16, "avx512_bf16; a bf16 product is 2.1 times"),
        (("avx512_bf16",), 1.1, None, "1.1 times as fast as"),  # it has the units, but they are not faster
        ((), 3.0, None, "no bf16 units"),  # emulated, so it is not timed
        (("avx2",), 3.0, None, "no bf16 units"),
    ],
)
def test_auto_on_a_cpu_is_bf16_if_it_is_faster(monkeypatch, units, speedup, dtype, reason):
    simulate(monkeypatch, units, speedup)
    chosen = choose_precision("auto", CPU)
    assert trunk_dtype(chosen) is dtype and reason in chosen["why"]


def test_the_precision_is_decided_once_per_process(monkeypatch):
    simulate(monkeypatch, ("amx_bf16",), 2.0)
    assert autocast_dtype("auto", CPU) is torch.bfloat16
    simulate(monkeypatch, ("amx_bf16",), 1.0)
    assert autocast_dtype("auto", CPU) is torch.bfloat16


def test_the_product_is_timed(monkeypatch):
    """By the time of its own thread: a clock that other work stops must not count."""
    monkeypatch.setattr(devices.time, "perf_counter", lambda: pytest.fail("a clock on the wall"))
    threads = torch.get_num_threads()
    assert 0.01 < bf16_speedup(96) < 1000
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("units, trunk", [(("amx_bf16",), "bfloat16"), ((), "float32")])
def test_a_run_records_its_precision_and_the_reason(monkeypatch, tmp_path, units, trunk):
    simulate(monkeypatch, units, 4.0)
    done = run(preset("smoke", precision="auto"), results=tmp_path, progress=False)
    assert done.record["precision"]["trunk"] == trunk and "this CPU has" in done.record["precision"]["why"]
    assert done.record["stretches"][0]["precision"] == done.record["precision"]
    assert preset("smoke").precision == preset("demo").precision == "fp32"


@pytest.mark.parametrize("speedup, trunk", [(4.0, "bfloat16"), (1.0, "float32")])
def test_a_resumed_run_keeps_its_precision(monkeypatch, tmp_path, speedup, trunk):
    """Although the product, which is timed again, gives the other one."""

    def stop(history):
        raise KeyboardInterrupt

    config = preset("smoke", precision="auto", epochs=2)
    simulate(monkeypatch, ("amx_bf16",), speedup)
    whole = run(config, results=tmp_path / "whole", progress=False)
    with pytest.raises(KeyboardInterrupt):
        run(config, results=tmp_path / "cut", progress=False, on_epoch=stop)
    devices._cpu_precision.cache_clear()
    simulate(monkeypatch, ("amx_bf16",), 4.0 / speedup)
    with pytest.warns(UserWarning, match=f"continues in {trunk}, with which it began; a new run here would compute"):
        done = run(config, results=tmp_path / "cut", progress=False)
    assert done.metrics == whole.metrics and done.history["loss"].equals(whole.history["loss"])
    assert done.record["precision"] == whole.record["precision"] and whole.record["precision"]["trunk"] == trunk
    parts = [part["precision"] for part in done.record["stretches"]]
    assert parts == [whole.record["precision"], {"trunk": trunk, "why": "the run began with it"}]


@pytest.mark.parametrize(
    "cpuinfo, elsewhere, name",
    [
        (
            "processor\t: 0\nmodel name\t: AMD EPYC 7R13\nprocessor\t: 1\nmodel name\t: AMD EPYC 7R13\n",
            "x86_64",
            "AMD EPYC 7R13",
        ),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", "aarch64", "aarch64"),  # an ARM server's file has no name
        (None, "arm", "arm"),  # macOS
    ],
)
def test_a_record_names_the_processor(monkeypatch, cpuinfo, elsewhere, name):
    def read(path, encoding):
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(portable.Path, "read_text", read)
    monkeypatch.setattr(portable.platform, "processor", lambda: elsewhere)
    assert devices.device_name(CPU) == name

"""Apple's GPU, simulated on a CPU.

`Simulated` makes tensors whose device is ``mps:0``. As on a Mac, they refuse float64, pinned memory, mixing with
tensors of another device, and `numpy`. Everything else is computed on the CPU. Metal's kernels and their
rounding, bf16 and memory are not simulated.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from vptsp_core import load, preset, retrieval_metrics, run
from vptsp_core.data.glyphs import load_glyphs
from vptsp_core.errors import VptspError
from vptsp_core.method.neighbours import nearest_neighbours
from vptsp_core.runs import run as runs_run
from vptsp_core.system.devices import autocast_dtype, pick_device

MPS = torch.device("mps:0")
aten = torch.ops.aten
BETWEEN_DEVICES = (aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put_.default)
OF_CUDA = (
    "Event", "Stream", "cudart", "current_stream", "device", "empty_cache", "get_device_name", "get_rng_state",
    "is_bf16_supported", "max_memory_allocated", "mem_get_info", "memory_allocated", "reset_peak_memory_stats",
    "set_device", "set_rng_state", "stream", "synchronize",
)  # fmt: skip


class OnMps(torch.Tensor):
    """A CPU tensor whose device is reported as mps. For torch's own code it is "meta", which autograd knows."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnMps:
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), inner.stride(), inner.storage_offset(), dtype=inner.dtype, device="meta"
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    device = property(lambda self: MPS)
    is_meta = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> list:
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.detach().cpu().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


class Simulated(TorchDispatchMode):
    """Inside, tensors can be made on ``mps:0`` and moved there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def computed(func, args, kwargs):
    """Compute an operation on the CPU, and return the result on the device of its arguments."""
    given = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [each for each in given if isinstance(each, OnMps)]
    there = bool(ours)
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type in ("mps", "meta")
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif func is aten.copy_.default:
        there = isinstance(args[0], OnMps)
    if ours and func not in BETWEEN_DEVICES and any(each.dim() for each in given if not isinstance(each, OnMps)):
        raise RuntimeError(f"{func}: tensors on mps:0 and on the CPU")
    args, kwargs = _pytree.tree_map_only(OnMps, lambda each: each.inner, (args, kwargs))
    made = func(*args, **kwargs)
    if not there:
        return made
    known = {id(each.inner): each for each in ours}  # tensors that are changed in place

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype is torch.float64:
            raise TypeError(f"{func}: there is no float64 on mps:0")
        return known[id(tensor)] if id(tensor) in known else OnMps(tensor)

    return _pytree.tree_map_only(torch.Tensor, placed, made)


@pytest.fixture
def mac(monkeypatch):
    """Simulate an Apple GPU, and refuse every call of CUDA."""

    def refused(*args, **options):
        raise AssertionError("only for CUDA")

    for name in OF_CUDA:
        monkeypatch.setattr(torch.cuda, name, refused)
    monkeypatch.setattr(torch.Tensor, "pin_memory", refused)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.__future__, "get_swap_module_params_on_conversion", lambda: True)  # of `Module.to`
    for name in ("__enter__", "__exit__"):  # tensor subclasses do not support inference mode
        monkeypatch.setattr(torch.inference_mode, name, getattr(torch.no_grad, name))
    with Simulated():
        yield


def test_the_stand_in_refuses_what_a_mac_refuses(mac):
    here = torch.ones(2, device="mps:0")
    assert here.device == MPS and (here + 1).sum().item() == 4
    with pytest.raises(TypeError, match="no float64"):
        here.double()
    with pytest.raises(TypeError, match="no float64"):
        torch.ones(2, dtype=torch.float64).to("mps:0")
    with pytest.raises(RuntimeError, match="on mps:0 and on the CPU"):
        here + torch.ones(2)
    with pytest.raises(RuntimeError):
        here.numpy()


RUNS = {
    "class prompts, classic": {},
    "rows of class prompts, cached, a start": dict(class_optimizer="rowwise", pipeline="cached", start="all"),
}


@pytest.mark.parametrize("changes", RUNS.values(), ids=list(RUNS))
def test_a_run_has_the_numbers_of_the_cpu(mac, monkeypatch, tmp_path, changes):
    monkeypatch.setattr(runs_run, "load_benchmark", lambda *_: load_glyphs(images_per_class=2))
    config = preset("smoke", steps_per_epoch=2, **changes)
    done = run(config, results=tmp_path / "mps", device="mps:0", progress=False)
    expected = run(config, results=tmp_path / "cpu", device="cpu", progress=False)
    assert done.record["device"] == "mps"
    assert done.history["loss"].to_numpy() == pytest.approx(expected.history["loss"].to_numpy(), rel=1e-3, nan_ok=True)
    assert done.metrics["MAP@R"] == pytest.approx(expected.metrics["MAP@R"], abs=0.02)
    images = torch.rand(3, 3, config.image_size, config.image_size)
    ours, theirs = (load(each.path, "mps:0").embed(images) for each in (done, expected))
    assert ours == pytest.approx(theirs, abs=0.02)


def test_search_and_metrics_are_exact(mac):
    rows = torch.randint(0, 3, (40, 4), generator=torch.Generator().manual_seed(0)).float() + 0.5  # many are equal
    labels = torch.arange(40) % 5
    for options in ({}, dict(gallery=rows.double().numpy(), gallery_labels=labels)):
        expected = retrieval_metrics(rows, labels, **options)
        assert retrieval_metrics(rows.to("mps:0"), labels.to("mps:0"), **options) == expected
    for ours, theirs in zip(nearest_neighbours(rows.to("mps:0"), rows, 7), nearest_neighbours(rows, rows, 7)):
        assert torch.equal(ours, theirs)


def test_auto_picks_it_but_not_for_several_processes(mac, monkeypatch):
    assert pick_device(None).type == pick_device("mps").type == "mps"
    for name, value in dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=2, MASTER_ADDR="::1", MASTER_PORT=1).items():
        monkeypatch.setenv(name, str(value))
    assert pick_device(None).type == "cpu"
    with pytest.raises(VptspError, match="^device 'mps': an Apple GPU works for one process"):
        pick_device("mps")


@pytest.mark.parametrize("new, dtype", [(True, torch.bfloat16), (False, None)])
def test_auto_is_bf16_if_torch_has_it(monkeypatch, new, dtype):
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: new)
    assert autocast_dtype("auto", MPS) is dtype
    with pytest.raises(VptspError, match="'fp16' needs an NVIDIA GPU, the device is mps:0"):
        autocast_dtype("fp16", MPS)

"""Class prompts in host memory against class prompts on the device: equal bit for bit."""

import copy
import gc
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.method.class_prompts import ClassPrompts
from vptsp_core.method.config import RunConfig
from vptsp_core.runs import host_prompts, memory
from vptsp_core.runs.host_prompts import HostPrompts
from vptsp_core.runs.memory import check_table_memory, place_class_prompts
from vptsp_core.system import host_memory
from vptsp_core.system.host_memory import own_pages, pin

SHAPE, PICKED, STEPS = (7, 2, 3, 4), 3, 14


def make(optimizer, *, host, shape=SHAPE, picked=PICKED):
    torch.manual_seed(0)
    prompts = ClassPrompts(shape, rowwise=True, batch_classes=picked, optimizer=optimizer)
    if host:
        prompts = HostPrompts(prompts)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    momentum = {"momentum": 0.9} if optimizer == "sgd" else {}
    return prompts, kind(prompts.parameters(), lr=0.1, weight_decay=0.05, **momentum)


def batches():
    """Return batches. Consecutive ones share one class, two, all in another order, or none. Some return later."""
    generator = torch.Generator().manual_seed(1)
    fixed = [[0, 1, 2], [2, 3, 4], [4, 2, 3], [5, 6, 0], [5, 6, 0], [1, 2, 3]]
    drawn = [torch.randperm(SHAPE[0], generator=generator)[:PICKED] for _ in range(STEPS - len(fixed))]
    return [torch.tensor(b) for b in fixed] + drawn


def train(prompts, optimizer, start=0, stop=STEPS):
    """Take some steps and return their losses."""
    losses, every = [], batches()
    for t in range(start, stop):
        generator = torch.Generator().manual_seed(t)
        weight = torch.randn(PICKED, *SHAPE[1:], generator=generator)
        prompts.swap_in(every[t], optimizer)
        optimizer.zero_grad()
        loss = (prompts(every[t]).pow(2) * weight).sum()
        loss.backward()
        optimizer.step()
        prompts.swap_out(every[t], optimizer)
        losses.append(loss.item())
    return losses


def assert_same_state(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys() and len(ours) >= 3
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_the_host_table_moves_as_the_table_on_the_device(optimizer):
    (device, of_device), (host, of_host) = make(optimizer, host=False), make(optimizer, host=True)
    start = device.table.clone()
    assert train(host, of_host) == train(device, of_device)
    assert_same_state(host, device)
    assert (device.table != start).flatten(1).all(1).all(), "a class was not trained"


def test_by_hand():
    """One number per class, SGD with momentum 0.5 and learning rate 1, and a gradient of 1 in every step."""
    prompts, _ = make("sgd", host=True, shape=(3, 1, 1, 1), picked=1)
    optimizer = torch.optim.SGD(prompts.parameters(), lr=1.0, momentum=0.5)
    prompts.table.copy_(torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1, 1))
    seen, order = [], [torch.tensor([c]) for c in (0, 0, 1, 0)]
    for classes in order:
        prompts.swap_in(classes, optimizer)
        optimizer.zero_grad()
        prompts(classes).sum().backward()
        seen.append(prompts.rows.item())
        optimizer.step()
        prompts.swap_out(classes, optimizer)
    assert seen == [10.0, 9.0, 20.0, 7.5]  # class 0 with velocity 1, then 1.5, then 1.75
    state = prompts.state_dict()
    assert state["table"].flatten().tolist() == [5.75, 19.0, 30.0]
    assert state["momentum_buffer"].flatten().tolist() == [1.75, 1.0, 0.0]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_continues_from_a_state_that_was_saved_midway(optimizer):
    (device, of_device), (host, of_host) = make(optimizer, host=False), make(optimizer, host=True)
    train(device, of_device, stop=6)
    train(host, of_host, stop=6)
    assert_same_state(host, device)
    saved = {name: value.clone() for name, value in host.state_dict().items()}
    of_saved = copy.deepcopy(of_host.state_dict())
    rest = train(device, of_device, start=6)
    assert train(host, of_host, start=6, stop=11) == rest[:5]
    fresh, of_fresh = make(optimizer, host=True)
    for prompts, of_prompts in ((fresh, of_fresh), (host, of_host)):
        prompts.load_state_dict(saved)
        of_prompts.load_state_dict(copy.deepcopy(of_saved))  # it keeps the tensors that it is given
        assert train(prompts, of_prompts, start=6) == rest
        assert_same_state(prompts, device)


def test_the_host_table_does_not_move():
    prompts, optimizer = make("adam", host=True)
    train(prompts, optimizer, stop=3)
    prompts.flush()
    outer, places = torch.nn.Sequential(prompts), [t.data_ptr() for t in prompts.buffers()]
    kept = prompts.table.clone()
    outer.to("meta")
    assert prompts.rows.device.type == "meta" and len(places) == 3
    assert [t.data_ptr() for t in prompts.buffers()] == places and torch.equal(prompts.table, kept)
    wide, _ = make("adam", host=True)
    wide.double()
    assert wide.rows.dtype == wide.table.dtype == torch.float64 and wide.table.device.type == "cpu"
    ordinary, _ = make("adam", host=False)
    assert ordinary.to("meta").table.device.type == "meta"


def test_classes_must_be_on_the_host_and_fit_the_rows():
    prompts, optimizer = make("sgd", host=True)
    with pytest.raises(AssertionError, match="on the CPU"):
        prompts.swap_in(torch.zeros(PICKED, dtype=torch.int64, device="meta"), optimizer)
    with pytest.raises(AssertionError, match="2 classes for 3 rows"):
        prompts.swap_in(torch.tensor([0, 1]), optimizer)
    with pytest.raises(AssertionError, match="dense"):
        HostPrompts(ClassPrompts(SHAPE, rowwise=False, batch_classes=1, optimizer="sgd"))


def test_own_pages():
    table = own_pages((3, 5, 7))
    assert table.data_ptr() % 4096 == 0 and table.shape == (3, 5, 7) and not table.any()
    other = own_pages((3, 5, 7))
    assert abs(table.data_ptr() - other.data_ptr()) >= 4096, "a page belongs to both"
    torch.manual_seed(0)
    drawn = torch.empty(3, 5, 7).normal_()
    torch.manual_seed(0)
    assert torch.equal(table.normal_(), drawn), "other random numbers than in ordinary memory"
    with pytest.raises(VptspError, match=r"no host memory for a class-prompt table of .* GB .*lower class_prompts"):
        own_pages((1 << 30, 1 << 20))


def test_memory_that_cannot_be_pinned_is_an_error_of_one_line(monkeypatch):
    calls = []
    runtime = SimpleNamespace(cudaHostRegister=lambda *args: calls.append(args) or 2)

    def check(code):
        raise RuntimeError(f"out of memory ({code})\nand more")

    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "check_error", check)
    table = own_pages((2, 3))
    with pytest.raises(VptspError, match=r"^cannot pin 0.0 GB .*out of memory \(2\).*ulimit -l.*$") as caught:
        pin(table, torch.device("cuda"))
    assert "\n" not in str(caught.value) and calls == [(table.data_ptr(), 24, 1)]


def test_tables_are_pinned_while_the_module_is_on_a_gpu(monkeypatch):
    """Also the tables that were pinned before one that cannot be."""
    log, most = [], [3]

    def pin_one(table, device):
        if len(log) == most[0]:
            raise VptspError("no more")
        log.append(table.data_ptr())
        return table.data_ptr()

    monkeypatch.setattr(host_prompts, "pin", pin_one)
    monkeypatch.setattr(host_prompts, "unpin", lambda addresses, device: log.extend(-each for each in addresses))
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    classes = torch.arange(PICKED)
    prompts, optimizer = make("adam", host=True)
    places = [table.data_ptr() for table in prompts.tables().values()]
    for _ in range(2):
        prompts.swap_in(classes, optimizer)
    assert log == places
    prompts.to("cpu")
    assert log == [*places, *(-place for place in places)]
    prompts.swap_in(classes, optimizer)
    del prompts, optimizer
    gc.collect()
    assert log == 2 * [*places, *(-place for place in places)]
    log.clear()
    most[0] = 1
    prompts, optimizer = make("adam", host=True)
    with pytest.raises(VptspError, match="no more"):
        prompts.swap_in(classes, optimizer)
    del prompts, optimizer
    gc.collect()
    assert len(log) == 2 and log[0] == -log[1]


def test_classes_reach_a_gpu_without_waiting(monkeypatch):
    """A copy from pageable memory would make the host wait for the GPU, twice per step."""
    prompts, optimizer = make("adam", host=False)
    sent, to = [], torch.Tensor.to

    def noted(tensor, *args, **options):
        if tensor.dtype == torch.int64 and tensor.dim() == 1:
            sent.append((tensor.tolist(), options.get("non_blocking")))
        return to(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", noted)
    train(prompts, optimizer, stop=2)
    assert sent == [(classes, True) for classes in ([0, 1, 2], [0, 1, 2], [2, 3, 4], [2, 3, 4])]


def test_where_class_prompts_are_placed(monkeypatch):
    def placed(free, where="auto", device="cuda", **options):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
        prompts = ClassPrompts(SHAPE, **{"rowwise": True, "batch_classes": 3, "optimizer": "adam"} | options)
        model = SimpleNamespace(class_prompts=prompts)
        place_class_prompts(model, torch.device(device), where)
        return isinstance(model.class_prompts, HostPrompts)

    size = 3 * 7 * 2 * 3 * 4 * 4  # table and two moments, float32
    assert placed(2 * size - 1) and not placed(2 * size)
    assert not placed(0, device="cpu") and not placed(0, "device") and placed(10**9, "host")
    assert not placed(0, rowwise=False)
    with pytest.raises(ConfigError, match="class_optimizer = 'rowwise'"):
        placed(0, "host", rowwise=False)
    with pytest.raises(ConfigError, match="class_optimizer = 'rowwise'"):
        place_class_prompts(SimpleNamespace(class_prompts=None), torch.device("cpu"), "host")


def test_a_host_table_must_fit_once_per_process(monkeypatch):
    def place(free, where="host", device="cpu", **options):
        monkeypatch.setattr("vptsp_core.runs.memory.available_memory", lambda: free)
        prompts = ClassPrompts(SHAPE, **{"rowwise": True, "batch_classes": 3, "optimizer": "adam"} | options)
        model = SimpleNamespace(class_prompts=prompts)
        place_class_prompts(model, torch.device(device), where)
        return isinstance(model.class_prompts, HostPrompts)

    table = 7 * 2 * 3 * 4 * 4  # float32; the table and its moments exist already and are copied one at a time
    assert place(table)
    with pytest.raises(VptspError, match=r"^class table on the host: .* x 1 processes .*; lower class_prompts"):
        place(table - 1)
    monkeypatch.setattr("vptsp_core.runs.memory.local_size", lambda: 4)
    assert place(4 * table) and place(4 * table, optimizer="sgd")
    with pytest.raises(VptspError, match=r"x 4 processes .*; start fewer processes, lower .* --class-table device$"):
        place(4 * table - 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 10**12))
    with pytest.raises(VptspError, match="x 4 processes"):
        place(4 * table - 1, "auto", "cuda")
    assert not place(0, "device", "cuda") and not place(0, "auto", "cpu"), "checked without a table in host memory"


def test_a_table_that_does_not_fit_is_refused_before_it_is_made(monkeypatch):
    config = RunConfig(class_layers=4, class_prompts=3, class_step=2)  # 3 and 1 prompts in two blocks, none in two
    for available, fits in ((4 * 7 * 2 * 3 * 4, True), (4 * 7 * 2 * 3 * 4 - 1, False)):
        monkeypatch.setattr(memory, "available_memory", lambda: available)  # noqa: B023
        monkeypatch.setattr(host_memory, "available_memory", lambda: available)  # noqa: B023
        refused = pytest.raises(VptspError, match="no host memory for a class-prompt table of .* are available")
        with nullcontext() if fits else refused:
            check_table_memory(config, 7, 4)
        with nullcontext() if fits else refused:
            own_pages((7, 2, 3, 4))
    for optimizer, tables in (("sgd", 2), ("adamw", 3)):  # a row-wise table has its optimiser's state beside it
        rowwise = config.replace(class_optimizer="rowwise", optimizer=optimizer)
        for available, fits in ((tables * 4 * 7 * 2 * 3 * 4, True), (tables * 4 * 7 * 2 * 3 * 4 - 1, False)):
            monkeypatch.setattr(host_memory, "available_memory", lambda: available)  # noqa: B023
            with nullcontext() if fits else refused:
                check_table_memory(rowwise, 7, 4)

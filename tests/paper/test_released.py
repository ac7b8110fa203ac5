"""The released implementation beside ours.

These tests write a stand-in for its clone. If the environment variable VPTSP_REFERENCE names a real clone, some tests
use that one.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import timm
import torch
from bench import metrics as bench_metrics
from torch import nn

from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.method.presets import preset
from vptsp_core.paper import released
from vptsp_core.paper.latency import latency_benches, latency_configs
from vptsp_core.paper.released import ReleasedBench, clone_modules, on_device
from vptsp_core.paper.step_bench import make_forms, random_batch, random_model
from vptsp_core.paper.step_cost import compare_forms, kept_bytes

REFERENCE = os.environ.get("VPTSP_REFERENCE")
with_clone = pytest.mark.skipif(not REFERENCE, reason="VPTSP_REFERENCE names no clone of the released implementation")
NAMES = ("architectures.peft_vit", "criteria.dml_proxy_peft", "params")
LINEAR = dict(method="linear", bitfit=False, batch=4)

PARAMS = """
def basic_training_parameters(parser):
    parser.add_argument("--extra", default=0.0, type=float)
    return parser
scale_optimizing_parameters = batch_creation_parameters = lambda parser: parser
batchmining_specific_parameters = loss_specific_parameters = lambda parser: parser
"""
MODEL = """
import timm, torch
class Network(torch.nn.Module):
    def __init__(self, opt):
        super().__init__()
        self.pars = opt
        self.model = timm.create_model(opt.pretrained_model, pretrained=True).cuda()
        self.fc_norm, self.head = torch.nn.LayerNorm(96), torch.nn.Linear(96, opt.embed_dim)
        self.proxies_bias = torch.nn.Parameter(torch.zeros(opt.n_classes, opt.embed_dim))
        self.proxies_container = torch.zeros(opt.n_classes, opt.embed_dim)
        learned = [*self.fc_norm.parameters(), *self.head.parameters()]
        self.optim_dict_list = [dict(params=[]), dict(params=learned, lr=opt.lr, weight_decay=opt.decay)]
        self.p_optim_dict_list = [dict(params=[self.proxies_bias], lr=opt.lr_proxy)]
    def forward(self, x, labels, anchor):
        return dict(embeds=self.head(self.fc_norm(self.model.forward_features(x)[:, 0])), proxies=self.proxies_bias)
"""
LOSS = """
import torch
from vptsp_core.method.losses import proxy_anchor
class Criterion(torch.nn.Module):
    def __init__(self, opt):
        super().__init__()
        self.opt = opt
    def forward(self, batch, labels, proxies):
        return proxy_anchor(batch, proxies, labels) + self.opt.extra
"""
METRICS = """
import torch
class MetricComputer:
    def __init__(self, names, opt):
        self.names = names
    def compute_standard(self, opt, model, loader, kinds, device, mode):
        rows = torch.cat([model(images["image"])["embeds"] for _, images, _ in loader])
        labels = torch.cat([labels for labels, _, _ in loader])
        assert len(loader.dataset.image_paths) == len(rows) and kinds == ["embeds"] and not opt.evaluate_on_gpu
        near = (rows @ rows.T).fill_diagonal_(-2).argsort(dim=1, descending=True)
        hits = labels[near[:, :-1]] == labels[:, None]
        found = {n: float(hits[:, : int(n.split("@")[1])].any(1).double().mean()) for n in self.names[:-1]}
        found["mAP_R"] = WRONG
        return {"embeds": found}, {}
"""


@pytest.fixture
def clone(tmp_path):
    """A stand-in that computes the linear method. Only its loss is our code."""
    files = {
        "params.py": PARAMS, "architectures/__init__.py": "", "architectures/peft_vit.py": MODEL,
        "criteria/__init__.py": "", "criteria/dml_proxy_peft.py": LOSS, "metrics/__init__.py": METRICS,
        "metrics/query_gallery_metrics.py": "",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def bench(reference, **changes) -> ReleasedBench:
    config, cpu = preset("smoke", **changes), torch.device("cpu")
    return ReleasedBench(random_model(config, cpu, 20), *random_batch(config, cpu), reference)


def test_a_clone_that_cannot_be_used_is_refused_in_one_line(clone):
    with pytest.raises(VptspError, match="reference nowhere: the folder is missing; give a whole clone"):
        clone_modules("nowhere", NAMES)
    (clone / "architectures/peft_vit.py").write_text("import faiss_that_is_absent")
    with pytest.raises(VptspError, match=r"No module named 'faiss_that_is_absent'\); .*pip install faiss-cpu"):
        clone_modules(clone, NAMES)
    (clone / "metrics/__init__.py").unlink()
    with pytest.raises(VptspError, match="metrics/__init__.py is missing; give a whole clone"):
        clone_modules(clone, NAMES)


def test_its_modules_leave_no_trace(clone, monkeypatch):
    mine = type(sys)("metrics")
    monkeypatch.setitem(sys.modules, "metrics", mine)  # another package of the same name
    (clone / "architectures/peft_vit.py").write_text("import sys, metrics\nsys.path.insert(0, '..')\nhere = __file__")
    search, known = list(sys.path), set(sys.modules)
    module, *_ = clone_modules(clone, NAMES)
    assert module.here.startswith(str(clone)) and module.metrics.MetricComputer and module.metrics is not mine
    assert sys.path == search and sys.modules["metrics"] is mine
    assert not {name for name in set(sys.modules) - known if name.startswith(("architectures", "criteria", "params"))}
    assert not list(clone.rglob("__pycache__")), "nothing is written into it"


def test_it_runs_on_any_device_and_downloads_nothing():
    create, backbone = timm.create_model, nn.Linear(2, 2)
    with on_device(torch.device("meta"), backbone):
        assert timm.create_model("vit_small_patch16_224_in21k", pretrained=True) is backbone
        assert torch.zeros(1).cuda().device.type == "meta" and next(backbone.cuda().parameters()).is_meta
    assert timm.create_model is create and nn.Module.cuda.__module__ == "torch.nn.modules.module"


def test_its_step_starts_from_our_weights_and_learns(clone):
    made = bench(clone, **LINEAR)
    assert made.difference < 1e-6
    before = made.loss().item()
    for _ in range(5):
        made.step()
    assert made.loss().item() < before
    assert kept_bytes(*made.kept()) > sum(p.nbytes for p in made.model.parameters())


def test_another_loss_is_refused(clone):
    (clone / "params.py").write_text(PARAMS.replace("0.0", "0.01"))
    with pytest.raises(VptspError, match=r"its loss is [\d.]+, ours [\d.]+ on the same weights and images"):
        bench(clone, **LINEAR)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"semantics": "paper"}, "semantics = 'paper'"), ({"accumulator": "lstm"}, "accumulator = 'lstm'"),
        ({"method": "adapter"}, "method = 'adapter'"), ({"proxy_source": "sample"}, "proxy_source = 'sample'"),
        ({"method": "lora", "bitfit": False}, "method = 'lora'"), ({"prompts": 0}, "prompts = 0"),
        ({"class_optimizer": "rowwise", "optimizer": "adam"}, "optimizer = 'adam'"),
    ],
)  # fmt: skip
def test_runs_that_were_not_released_are_refused(changes, message):
    with pytest.raises(ConfigError, match=f"{message}: the released implementation has no such run"):
        released.check_released(preset("smoke", **changes))


def test_its_forms_are_those_of_its_configuration_files(clone):
    forms = ("eager", "textbook")
    assert list(make_forms(preset("smoke"), forms, clone)) == [*forms, "released"]
    rowwise = make_forms(preset("smoke", class_optimizer="rowwise"), forms, clone)
    assert list(rowwise)[2:] == ["released", "released, no checkpointing"]
    cells = latency_benches(latency_configs("smoke"), reference=clone)
    assert ("VPTSP", 32, "released") in cells and ("Adapter", 32, "released") not in cells


def test_its_metrics_take_finished_embeddings(clone, monkeypatch):
    pytest.importorskip("faiss")
    size = bench_metrics.Size(300, 8, 60, (1, 4))
    monkeypatch.setattr(bench_metrics, "ProcessPoolExecutor", lambda **_: ThreadPoolExecutor(1))
    text = clone / "metrics/__init__.py"
    with mock.patch.object(bench_metrics, "_difference", lambda ours, theirs: (ours["R@4"], theirs["R@4"])):
        text.write_text(METRICS.replace("WRONG", "0.5"))
        found = bench_metrics.benchmark_metrics(size, repeats=1, reference=clone)
    assert found["released_difference"][0] == pytest.approx(found["released_difference"][1])
    assert found["released_ratio"] > 0 and found["released_mib"] >= 0
    with pytest.raises(VptspError, match="its MAP@R released is 0.500000, ours 0.0"):
        bench_metrics.benchmark_metrics(size, repeats=1, reference=clone)


# ---- the real one ----------------------------------------------------------------------------------


@with_clone
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"bitfit": True, "optimizer": "sgd", "samples_per_class": 2},
        {"accumulator": "ema", "samples_per_class": 2}, {"accumulator": "gru_tanh", "class_step": 1},
        {"class_optimizer": "rowwise", "gru_dropout": 0.2}, {"loss_margin": 0.2, "alpha": 0.1},
        {"method": "vpt"}, {"method": "linear"}, {"method": "full", "bitfit": False}, {"proxy_source": "encoder"},
    ],
)  # fmt: skip
def test_its_loss_is_ours(changes):
    made = bench(REFERENCE, **changes)
    assert made.difference < 1e-5
    made.step()
    made.step()
    assert torch.isfinite(made.loss())


@with_clone
def test_its_step_is_measured_beside_ours():
    config = preset("smoke", class_optimizer="rowwise")
    found = compare_forms(config, device="cpu", steps=1, forms=("eager", "textbook"), reference=REFERENCE)
    own = found["forms"]["released"], found["forms"]["released, no checkpointing"]
    assert all(cost["loss_difference"] < 1e-5 and cost["ratio"] > 0 for cost in own)
    assert own[0]["memory_MB"] is None and own[1]["memory_MB"] > found["forms"]["eager"]["memory_MB"]


@with_clone
@pytest.mark.parametrize("queries", [0, 250])
def test_its_metrics_are_ours(queries, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(bench_metrics, "ProcessPoolExecutor", lambda **_: ThreadPoolExecutor(1))
    size = bench_metrics.Size(300, 8, 60, (1, 4, 50), queries)
    assert bench_metrics.benchmark_metrics(size, repeats=1, reference=REFERENCE)["released_difference"] < 1e-6

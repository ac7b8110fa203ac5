"""A trained model on the Hugging Face Hub: one file with the learned tensors, and a model card from the record."""

from __future__ import annotations

import contextlib
import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
from huggingface_hub import EvalResult, HfApi, ModelCardData, errors
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment

from vptsp_core.data import OWN
from vptsp_core.data.catalog import CATALOG
from vptsp_core.data.loading import interpolation_name
from vptsp_core.errors import ConfigError, VptspError, WeightsError
from vptsp_core.method import hub
from vptsp_core.method.config import RunConfig
from vptsp_core.method.presets import PRESETS
from vptsp_core.runs.embedder_file import Saved, TrainedModel, read_saved, write_embedder
from vptsp_core.runs.evaluate import embedding_width
from vptsp_core.runs.folder import METRICS, WEIGHTS, Run, data_options, read_run
from vptsp_core.runs.frames import frame, over_seeds
from vptsp_core.runs.selection import HELD_OUT
from vptsp_core.system.places import ASSETS, VERSION

SCHEME = "hf://"
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
CHOSEN = {
    "released": "each metric at its own best epoch on the test split, as the paper's authors report; the file is "
    "of the epoch with the best R@1",
    "last": "the last epoch",
    "validation": "the epoch with the best R@1 on classes held out from training",
    "validation_map": "the epoch with the best MAP@R on classes held out from training",
}


def is_shared(path: str | Path) -> bool:
    """Return whether ``path`` is on the Hub: ``hf://...``."""
    return str(path).startswith(SCHEME)


def place(uri: str) -> tuple[str, str | None]:
    """Return repository and revision of ``hf://org/name[@revision]``. Raises ConfigError: it has another form."""
    repo, _, revision = uri.removeprefix(SCHEME).partition("@")
    try:
        validate_repo_id(repo)
    except errors.HFValidationError:
        repo = ""
    if "/" not in repo:
        raise ConfigError(f"{uri}: write hf://ORG/NAME or hf://ORG/NAME@REVISION, as the Hub has it")
    return repo, revision or None


def read_shared(uri: str) -> Saved:
    """Read the model at ``hf://org/name[@revision]``. A model in the Hub's cache needs no network.
    Raises WeightsError: the repository or revision does not exist or cannot be reached, or its file is damaged.
    """
    repo, revision = place(uri)
    obstacle = hub.why_unreachable()
    try:
        with hub.quiet_hub_log():
            path = Path(huggingface_hub.hf_hub_download(
                repo, WEIGHTS, revision=revision, local_files_only=obstacle is not None,
                library_name="vptsp-core", library_version=VERSION,
            ))  # fmt: skip
    except (errors.HTTPError, OSError) as error:
        raise WeightsError(f"{uri}: {obstacle or _one_line(error)}; check the name, {LOGIN}, or try again") from error
    try:
        return read_saved(path)
    except WeightsError as error:
        raise WeightsError(f"{uri}: {error}; delete {path.parents[2]} to fetch it again") from error


def push(trained: TrainedModel, repo: str, revision: str | None = None, private: bool | None = None) -> str:
    """Upload ``trained``. Arguments and result are those of `Embedder.push_to_hub`. Raises the same errors."""
    uri = f"{SCHEME}{repo.removeprefix(SCHEME)}"
    repo, named = place(uri)
    if named is not None and revision not in (None, named):
        raise ConfigError(f"{uri}: the address and revision={revision!r} name different revisions; give one of them")
    revision = revision or named
    if huggingface_hub.get_token() is None:
        raise VptspError(f"{uri}: this machine has no token of the Hub; {LOGIN}")
    if obstacle := hub.why_unreachable():
        raise VptspError(f"{uri}: {obstacle}; connect this machine, or export to a .safetensors file and upload that")
    config = trained.config
    if config.weights not in ("pretrained", "random"):  # folder names of this machine are private
        config = config.replace(weights=Path(config.weights).name)
    api = HfApi(library_name="vptsp-core", library_version=VERSION)
    with tempfile.TemporaryDirectory() as folder, hub.quiet_hub_log():
        write_embedder(Path(folder, WEIGHTS), trained, config)
        Path(folder, "README.md").write_text(model_card(trained, repo, revision), "utf-8")
        message = f"{config.method} on {config.backbone}" + (f", run {trained.run}" if trained.run else "")
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo, branch=revision, exist_ok=True)
            commit = api.upload_folder(repo_id=repo, folder_path=folder, revision=revision, commit_message=message)
        except (errors.HTTPError, OSError) as error:
            cure = f"use a token that may write ({LOGIN}), or try again"
            raise VptspError(f"{uri}: {_one_line(error)}; {cure}") from error
    return f"{SCHEME}{repo}@{commit.oid}"


def _one_line(error: Exception) -> str:
    """Return the Hub's message in one line."""
    return " ".join(str(error).split())


def model_card(trained: TrainedModel, repo: str, revision: str | None = None) -> str:
    """Return the README.md of the repository: what the model is, how to use it, its numbers, and how it was made.

    If the embedder does not come from a run's folder, other seeds, the frozen backbone and the machine are left out.
    """
    config, data = trained.config, dict(trained.data or {})
    run = read_run(trained.path) if trained.path is not None and trained.path.is_dir() else None
    others = _same_images(run) if run else []
    seeds = [each for each in others if each.config.replace(seed=0).hash() == config.replace(seed=0).hash()]
    title, facts = _data_set(config, data)
    metrics = {
        name: value for name, value in trained.metrics.items() if name != "epoch" and not name.startswith(HELD_OUT)
    }
    columns = {"this model": {name: f"{100 * value:.2f}" for name, value in metrics.items()}}
    if len(seeds) > 1:
        mean = over_seeds(frame(seeds), ["dataset"], [*metrics]).iloc[0]
        columns[f"mean of {len(seeds)} seeds, 95 % interval"] = {
            name: f"{100 * mean[name]:.2f} ± {100 * mean[f'{name} ±']:.2f}" for name in metrics
        }
    if frozen := next((each for each in others if each.config.method == "frozen" != config.method), None):
        columns["frozen backbone, untrained"] = {name: f"{100 * value:.2f}" for name, value in frozen.metrics.items()}
    known = timm.get_pretrained_cfg(config.backbone)
    name = repo.split("/")[1]
    front = ModelCardData(
        library_name="vptsp-core", pipeline_tag="image-feature-extraction", model_name=name,
        tags=["image-retrieval", "metric-learning", "visual-prompt-tuning", "vptsp", config.method],
        base_model=known.hf_hub_id.partition("@")[0] if known and known.hf_hub_id else None, metrics=[*metrics],
        eval_results=[
            EvalResult(
                task_type="image-feature-extraction", task_name="Image retrieval", dataset_type=config.dataset,
                dataset_name=title, dataset_split="test", metric_type=each, metric_value=round(100 * value, 2),
            ) for each, value in metrics.items()
        ],
    )  # fmt: skip
    template = Environment(trim_blocks=True).from_string((ASSETS / "model_card.md").read_text("utf-8"))
    return template.render(
        front=front.to_yaml(), name=name, width=embedding_width(trained.model), config=config, file=WEIGHTS,
        facts=facts, columns=columns, metrics=metrics,
        uri=f"{SCHEME}{repo}{f'@{revision}' if revision else ''}",
        chosen=CHOSEN[config.selection] if config.method != "frozen" and config.epochs else None,
        command=command(config) + data_options({"name": config.dataset} | data),
        run=trained.run, record=run and run.record,
    )  # fmt: skip


def command(config: RunConfig) -> str:
    """Return the `train` command of a run without `data_options`: the nearest preset, and the keys that differ."""

    def changes(name: str) -> dict[str, Any]:
        preset, unread = RunConfig(**PRESETS[name]).to_dict(), config.unread()
        return {key: value for key, value in config.to_dict().items() if key not in unread and preset[key] != value}

    name = min(PRESETS, key=lambda each: len(changes(each)))
    words = ["python", "-m", "vptsp_core", "train", "--preset", name]
    if values := changes(name):
        if "weights" in values:
            values["weights"] = Path(values["weights"]).name
        words += ["--set", *(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items())]
    return shlex.join(words)


def _data_set(config: RunConfig, data: dict[str, Any]) -> tuple[str, str]:
    """Return the data set's name, and a paragraph about it and its splits."""
    known = CATALOG.get(config.dataset)
    unpublished = "the owner's images" if config.dataset in OWN else "glyphs, letters that vptsp_core draws"
    title = known.title if known else unpublished
    prints = ", ".join(f"{split} `{value}`" for split, value in data.items() if split not in ("name", "partial"))
    facts = f"Data set: {title}"
    if known and "partial" not in data:
        counts = [f"{split} {n:,} images of {classes:,} classes" for split, (classes, n) in known.counts.items()]
        facts += f" ({'; '.join(counts)}; terms: {known.terms})"
    if "partial" in data:
        facts += f", **incomplete**: {'; '.join(data['partial'])}"
    return title, facts + (f". Fingerprints of the splits: {prints}." if prints else ".")


def _same_images(run: Run) -> list[Run]:
    """Return the finished runs beside a run that differ from it in training only, itself included."""
    finished = []
    for path in sorted(run.path.parent.glob(f"{run.config.dataset}-*/{METRICS}")):
        with contextlib.suppress(VptspError):  # a damaged run does not prevent the upload of another one
            finished.append(read_run(path.parent))

    def key(each: Run) -> tuple[object, ...]:
        config = each.config
        seen = config.resize, config.image_size, config.pool, interpolation_name(config)
        return each.record["data"], each.record["weights"], each.record.get("precision", {}).get("trunk"), seen

    return [each for each in finished if key(each) == key(run)]

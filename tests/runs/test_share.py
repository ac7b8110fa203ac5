"""A trained model on the Hub: upload to and download from a small local server, and the messages of failures."""

import base64
import hashlib
import json
import shlex
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import constants
from reseal import rewrite_header

import vptsp_core
from tests.method.test_hub import closed
from tests.runs.test_embedder import learned
from vptsp_core.__main__ import main
from vptsp_core.deploy.index import ImageIndex
from vptsp_core.deploy.update import model_path
from vptsp_core.errors import ConfigError, VptspError, WeightsError
from vptsp_core.method.config import RunConfig
from vptsp_core.method.presets import PRESETS, parse_change, preset
from vptsp_core.runs.embedder import Embedder
from vptsp_core.runs.embedder_file import HEADER
from vptsp_core.runs.folder import run_folder, write_run
from vptsp_core.runs.share import command, model_card, place

TOKEN = "hf_writes"


class Hub(BaseHTTPRequestHandler):
    """Answers the requests with which huggingface_hub creates a repository, commits to it and downloads from it."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        body, parts = self.rfile.read(int(self.headers["Content-Length"] or 0)), self.path.split("/")
        repos = self.server.repos
        if parts[2] == "validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if parts[2] == "repos":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.private[name] = asked.get("visibility") == "private" or asked.get("private")
            known = name in repos
            repos.setdefault(name, {"main": ("0" * 40, {})})
            return self.answer(409 if known else 200, {"url": f"{constants.ENDPOINT}/{name}"})
        repo = "/".join(parts[3:5])
        branches = repos[repo]
        action, revision = parts[5:7]
        if action == "branch":
            known = revision in branches
            branches.setdefault(revision, branches["main"])
            return self.answer(409 if known else 200, {})
        if action == "preupload":
            files = [{**each, "uploadMode": "regular", "shouldIgnore": False} for each in json.loads(body)["files"]]
            return self.answer(200, {"files": files})
        lines = [json.loads(line) for line in body.splitlines()]
        files = {each["value"]["path"]: base64.b64decode(each["value"]["content"]) for each in lines[1:]}
        oid = hashlib.sha1(body).hexdigest()
        branches[revision] = branches[oid] = oid, {**branches[revision][1], **files}
        url = f"{constants.ENDPOINT}/{repo}/commit/{oid}"
        return self.answer(200, {"success": True, "commitOid": oid, "commitUrl": url})

    def do_GET(self):
        if self.path.startswith("/api/"):  # a request for the tools that the Hub knows
            return self.answer(404, {})
        owner, name, _, revision, file = self.path.removeprefix("/").split("/")
        branches = self.server.repos.get(f"{owner}/{name}")
        if branches is None:
            return self.answer(404, {}, {"X-Error-Code": "RepoNotFound"})
        if revision not in branches:
            return self.answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
        oid, files = branches[revision]
        if file not in files:
            return self.answer(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid})
        etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
        return self.answer(200, files[file], {"X-Repo-Commit": oid, "ETag": etag})

    do_HEAD = do_GET

    def answer(self, status, content, headers=()):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**dict(headers), "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def server(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as made:
        made.repos, made.private = {}, {}
        threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        point_at(monkeypatch, f"http://127.0.0.1:{made.server_address[1]}")
        yield made
        made.shutdown()


def point_at(monkeypatch, address):
    """Set the address of the Hub. HF_ENDPOINT does the same, but only before huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def test_what_is_pushed_is_loaded_by_branch_and_by_commit(server, monkeypatch):
    first, second = learned(method="vpt"), learned(method="vpt", noise=1)
    images = torch.rand(2, 3, 40, 40)
    commit = first.push_to_hub("org/letters", private=True)
    assert server.private == {"org/letters": True}
    assert sorted(server.repos["org/letters"]["main"][1]) == ["README.md", "model.safetensors"]
    assert second.push_to_hub("org/letters", revision="second") != commit
    for uri, made in (("hf://org/letters", first), (commit, first), ("hf://org/letters@second", second)):
        found = vptsp_core.load(uri, "cpu")
        assert found.run == "0123456789ab" and found.checksum() == made.checksum()
        np.testing.assert_array_equal(found.embed(images), made.embed(images))
    second.push_to_hub("hf://org/letters@third")
    assert "third" in server.repos["org/letters"] and server.repos["org/letters"]["main"][0] == commit.partition("@")[2]
    with pytest.raises(ConfigError, match="revision='other' name different revisions; give one of them"):
        second.push_to_hub("org/letters@third", revision="other")
    second.push_to_hub("org/letters")  # an existing repository gets another commit
    assert vptsp_core.load("hf://org/letters", "cpu").checksum() == second.checksum()
    point_at(monkeypatch, closed())  # without a network, a model in the cache is loaded
    assert vptsp_core.load(commit, "cpu").checksum() == first.checksum()


def test_commands_take_an_address_of_the_hub(server, tmp_path, capsys):
    file = learned(method="vpt").save(tmp_path / "letters.safetensors")
    assert main(["export", str(file), "--to", "hf://org/letters@second"]) == 0
    uri = capsys.readouterr().out.strip()
    assert uri.startswith("hf://org/letters@") and len(uri) == len("hf://org/letters@") + 40
    assert main(["export", uri, "--to", str(tmp_path / "again.safetensors")]) == 0
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()
    index = ImageIndex("images", [], np.zeros((0, 2)), np.zeros((0, 96)), {"path": uri})
    assert model_path(index) == uri  # `search` loads it again


@pytest.mark.parametrize("where", ["the hub", "the cache"])
def test_a_tampered_file_is_refused(server, tmp_path, where):
    commit = learned(method="vpt").push_to_hub("org/letters")
    if where == "the hub":
        _, files = server.repos["org/letters"]["main"]
        files["model.safetensors"] = files["model.safetensors"][:-1] + b"\x3e"
    else:
        vptsp_core.load(commit, "cpu")
        (file,) = (tmp_path / "cache").rglob("model.safetensors")
        file.write_bytes(file.read_bytes()[:-1] + b"\x3e")
    with pytest.raises(WeightsError, match=r"^hf://org/letters@.*its tensors do not .*; delete .* to fetch it again"):
        vptsp_core.load(commit, "cpu")


def test_other_weights_of_the_backbone_are_refused(server, tmp_path):
    learned(method="vpt", weights="random", seed=1).push_to_hub("org/letters")
    _, files = server.repos["org/letters"]["main"]
    file = tmp_path / "model.safetensors"
    file.write_bytes(files[file.name])
    rewrite_header(file, HEADER, lambda header: header["config"].update(seed=2))
    files[file.name] = file.read_bytes()
    with pytest.raises(WeightsError, match="are not those it was trained on"):
        vptsp_core.load("hf://org/letters", "cpu")


def test_failures_are_one_line_with_a_cure(server, monkeypatch, capsys):
    made = learned(method="vpt")
    made.push_to_hub("org/letters")
    for uri in ("hf://org/nothing", "hf://org/letters@v9"):
        with pytest.raises(WeightsError, match=f"^{uri}: .*; check the name, log in with `hf auth login`"):
            vptsp_core.load(uri, "cpu")
    monkeypatch.setenv("HF_TOKEN", "hf_reads")
    with pytest.raises(VptspError, match="^hf://org/letters: .*401.*; use a token that may write"):
        made.push_to_hub("org/letters")
    with monkeypatch.context() as inside:
        inside.setattr(huggingface_hub, "get_token", lambda: None)
        with pytest.raises(VptspError, match="has no token of the Hub; log in with `hf auth login`, or set HF_TOKEN"):
            made.push_to_hub("org/letters")
    point_at(monkeypatch, closed())
    with pytest.raises(VptspError, match=r"no connection to 127.0.0.1(:\d+)?; connect this machine, or export to"):
        made.push_to_hub("org/letters")
    assert main(["evaluate", "hf://org/letters@v9"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("uri", ["hf://letters", "hf://org/letters/more", "hf://", "hf:///letters@main"])
def test_a_bad_address(uri):
    with pytest.raises(ConfigError, match="write hf://ORG/NAME or hf://ORG/NAME@REVISION"):
        place(uri)


def finished(results, **changes):
    """Write a finished run without training."""
    config = preset("smoke", **changes)
    model = learned(**changes).model
    record = {
        "hash": config.hash(), "commit": "0123456789ab", "device": "cpu, 1 thread", "weights": "6ef708744d2cc006",
        "versions": {"torch": "2.13.0"}, "data": {"name": "glyphs", "train": "01", "test": "02"},
        "parameters": {"tunable": 1234, "total": 5678}, "seconds": 90.0,
    }  # fmt: skip
    value = 0.25 if config.method == "frozen" else 0.5 + config.seed / 100
    history = pd.DataFrame([{"epoch": 1, "R@1": value, "MAP@R": value / 2, "validation R@1": 0.9}])
    return write_run(config, run_folder(config, results), history, record, {}, model.learned_state(for_retrieval=True))


def test_the_card_has_the_facts_of_the_record_and_of_the_runs_beside_it(tmp_path):
    frozen = dict(method="frozen", bitfit=False)
    for changes in (dict(seed=1), dict(seed=2), dict(alpha=0.9), frozen):
        finished(tmp_path, **changes)
    card = model_card(vptsp_core.load(finished(tmp_path).path, "cpu"), "org/letters", "v1")
    _, front, text = card.split("---\n", 2)
    front = yaml.safe_load(front)
    assert "license" not in front  # the license of the images is not known
    assert front["pipeline_tag"] == "image-feature-extraction"
    assert front["library_name"] == "vptsp-core" and front["metrics"] == ["R@1", "MAP@R"]
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"]["split"] == "test"
    assert [each["value"] for each in result["metrics"]] == [50.0, 25.0]
    # Student's t: 4.303 times the deviation of 0.50, 0.51, 0.52 over the root of 3
    assert "|  | this model | mean of 3 seeds, 95 % interval | frozen backbone, untrained |" in text
    assert "| R@1 | 50.00 | 51.00 ± 2.48 | 25.00 |" in text
    other = model_card(vptsp_core.load(finished(tmp_path, semantics="paper").path, "cpu"), "org/letters")
    assert "frozen backbone, untrained" not in other, "the frozen run has its images resized in the other way"
    assert 'load("hf://org/letters@v1")' in text and "Fingerprints of the splits: train `01`, test `02`" in text
    assert "validation" not in card, "a metric of held-out training classes is no result of the test split"
    headless = finished(tmp_path, embed_dim=32, **frozen)  # without a head, embeddings have the backbone's width
    assert "embeddings of 96 numbers" in model_card(vptsp_core.load(headless.path, "cpu"), "org/letters")
    assert f"| run | `{preset('smoke').hash()}`, seed 0 |" in text
    assert "`python -m vptsp_core train --preset smoke`" in text and "1.5 minutes" in text and "1,234 tuned" in text


def test_a_card_without_a_run_leaves_facts_out(tmp_path):
    made = learned(method="vpt", weights="random")
    card = model_card(vptsp_core.load(made.save(tmp_path / "a.safetensors"), "cpu"), "org/letters")
    assert "| R@1 | 50.00 |" in card and "frozen backbone" not in card and "machine" not in card
    assert "| run | `0123456789ab`, seed 0 |" in card
    assert "| seed | 0 |" in (alone := model_card(Embedder(made.model), "org/letters")) and "None" not in alone


@pytest.mark.parametrize("changes", [dict(), dict(steps_per_epoch=None), dict(alpha=0.1, accumulator="ema", seed=3)])
@pytest.mark.parametrize("name", ["demo", "sop-vits16"])
def test_the_command_makes_the_same_run(name, changes):
    config = RunConfig(**PRESETS[name]).replace(**changes)
    _, _, _, _, _, found, *rest = shlex.split(command(config))
    assert preset(found, **dict(map(parse_change, rest[1:]))).hash() == config.hash()


def test_a_connection_that_fails_in_the_upload_is_one_line(server, monkeypatch):
    """Of this kind are timeouts and faulty proxies, which are no OSError."""

    def fail(*args, **options):
        raise huggingface_hub.errors.HTTPError("the proxy answers 407")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    with pytest.raises(VptspError, match="^hf://org/letters: the proxy answers 407; use a token that may write"):
        learned(method="vpt").push_to_hub("org/letters")


def test_a_damaged_run_does_not_prevent_the_card_of_another_one(tmp_path):
    damaged = finished(tmp_path, seed=1)
    (damaged.path / "history.csv").write_text("")
    card = model_card(vptsp_core.load(finished(tmp_path).path, "cpu"), "org/letters")
    assert "| R@1 | 50.00 |" in card and "mean of" not in card

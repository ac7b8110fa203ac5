"""Give mutated input to every reader, which may raise only the project's own errors.

    python tests/fuzz.py [--seconds 60] [--seed 0] [--only config lists csv weights images]

Valid samples are mutated (bits, bytes, cuts, splices, odd values; JSON by its structure too). The generator is seeded
with (seed, target, number of the execution), so the number repeats an execution. Print the executions by target and
every other exception with its number; exit with 1 if there was one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image
from reseal import reseal_run
from safetensors.torch import save

import vptsp_core
from vptsp_core.data import load_benchmark
from vptsp_core.data.catalog import CATALOG
from vptsp_core.data.folder import read_image
from vptsp_core.errors import VptspError
from vptsp_core.method.backbone import load_backbone, load_weights
from vptsp_core.method.presets import PRESETS, parse_change, preset
from vptsp_core.publish.tables import read_table, table_html
from vptsp_core.runs.folder import read_run
from vptsp_core.runs.run import run

TOKENS = [
    b"\0", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", "\u202e".encode(), "\u2028".encode(), b"\xef\xbb\xbf", b"\r", b"\n",
    b'"', b",", b"'", b"\\", b"/", b"../", b"=", b"{", b"[" * 2000, b"}", b"]", b"NaN", b"-Infinity", b"1e999",
    b"-1",
    b"9" * 400, b"9" * 5000, b"0x1", b"null", b"true", b"\\ud800", b"\x1a", b" ", b"\t", b"%s", b"~", b"x" * 3000,
]  # fmt: skip
VALUES = [
    None, True, False, 0, -1, 1, 2**63, 2**64, -(2**31), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "\0",    "x", "x" * 3000, "\ud800", "\u202e", "../..", "~", "sha256:0", "nowhere.pth", [],
    [1], {}, {"a": 1}, [[[[]]]], "1", "cls",
]  # fmt: skip
Target = Callable[[np.random.Generator, Path], None]


def mutated(sample: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """Return ``sample`` with one to four mutations."""
    out = bytearray(sample)
    for _ in range(rng.integers(1, 5)):
        at, end = sorted(rng.integers(0, len(out) + 1, 2).tolist())
        match rng.integers(8):
            case 0:
                out = out[:at]
            case 1:
                del out[at:end]
            case 2:
                out[at:at] = out[at:end][:5000]
            case 3:
                other = others[rng.integers(len(others))]
                out = out[:at] + other[rng.integers(len(other) + 1) :]
            case 4 | 5:
                out[at:at] = TOKENS[rng.integers(len(TOKENS))]
            case 6 if out:
                out[at % len(out)] ^= 1 << int(rng.integers(8))
            case _ if out:
                out[at % len(out)] = int(rng.integers(256))
    return bytes(out)


def mutated_json(values: dict, rng: np.random.Generator) -> bytes:
    """Return JSON with changed, missing or new keys; half of the time, its bytes are mutated too."""
    values = dict(values)
    for _ in range(rng.integers(1, 4)):
        key = list(values)[rng.integers(len(values))] if values else "x"
        match rng.integers(4):
            case 0:
                values.pop(key, None)
            case 1:
                values[str(VALUES[rng.integers(len(VALUES))])] = 1
            case _:
                values[key] = VALUES[rng.integers(len(VALUES))]
    content = json.dumps(values).encode()
    return mutated(content, rng, [content]) if rng.random() < 0.5 else content


def config(folder: Path) -> Target:
    """Fuzz presets in JSON, and the text of --set."""
    texts = [f"{k}={v}".encode() for values in PRESETS.values() for k, v in values.items()]

    def once(rng: np.random.Generator, place: Path) -> None:
        if rng.random() < 0.5:
            path = place / "p.json"
            path.write_bytes(mutated_json(list(PRESETS.values())[rng.integers(len(PRESETS))], rng))
            preset(str(path)).hash()
        else:
            text = mutated(texts[rng.integers(len(texts))], rng, texts).decode(errors="surrogateescape")
            preset("smoke", **dict([parse_change(text)])).hash()

    return once


def lists(folder: Path) -> Target:
    """Fuzz the lists of every data set that has lists, and split.csv."""
    rows = {
        "sop": ("Info_Files/Ebay_{}.txt", "image_id class_id super_class_id path\n"
                "1 {0} 1 x/{0}_0.JPG\n2 {0} 1 x/{0}_1.JPG\n"),
        "inaturalist": ("Inaturalist_{}_set1.txt", "train_val2018/Aves/{0}/0.jpg\ntrain_val2018/Aves/{0}/1.jpg\n"),
    }  # fmt: skip
    files: list[tuple[str, Path, bytes]] = []

    def put(path: Path, content: bytes = b"x") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    for name, (file, content) in rows.items():
        for label, split in enumerate(("train", "test"), 1):
            path = folder / CATALOG[name].folder / file.format(split)
            put(path, content.format(label).encode())
            files.append((name, path, path.read_bytes()))
            for i in range(2):
                put(folder / CATALOG["sop"].folder / "images" / "x" / f"{label}_{i}.JPG")
                put(folder / CATALOG["inaturalist"].folder / "train_val2018" / "Aves" / str(label) / f"{i}.jpg")
    shop = ["img/a/0.jpg a train", "img/a/1.jpg a train", "img/b/0.jpg b query", "img/b/1.jpg b gallery"]
    path = folder / "inshop" / "list_eval_partition.txt"
    put(path, "\n".join(["4", "image_name item_id evaluation_status", *shop]).encode())
    files.append(("inshop", path, path.read_bytes()))
    own = [line.removeprefix("img/").replace(" ", ",") for line in shop]
    path = folder / "own" / "split.csv"
    put(path, "\n".join(["path,class,split", *own]).encode())
    files.append(("folder", path, path.read_bytes()))
    for line in shop:
        put(folder / "inshop" / line.split()[0])
        put(folder / "own" / line.split()[0].removeprefix("img/"))
    contents = [content for _, _, content in files]

    def once(rng: np.random.Generator, place: Path) -> None:
        name, path, content = files[rng.integers(len(files))]
        path.write_bytes(mutated(content, rng, contents))
        try:
            found = load_benchmark(
                name, folder / "own" if name == "folder" else folder, allow_partial=rng.random() < 0.8
            )
            found.fingerprint()
        finally:
            path.write_bytes(content)

    return once


def csv(folder: Path) -> Target:
    """Fuzz the text files of a results folder: history.csv, metrics.json, record.json, config.json, tables."""
    done = _trained(folder)
    kept = {name: (done / name).read_bytes() for name in ("history.csv", "metrics.json", "record.json", "config.json")}
    table = b'label,"R@1, paper","R@1, ours","R@1, difference",words\nVPT,86.6,61.7,-24.9,a\n"x, y",,1e-3,,<b>\n'

    def once(rng: np.random.Generator, place: Path) -> None:
        if rng.random() < 0.3:
            (place / "t.csv").write_bytes(mutated(table, rng, [table, kept["history.csv"]]))
            table_html(read_table(place / "t.csv"), "t")
            return
        name = list(kept)[rng.integers(len(kept))]
        whole = kept[name]
        (done / name).write_bytes(
            mutated_json(json.loads(whole), rng) if name.endswith("json") else mutated(whole, rng, [whole, table])
        )
        try:
            found = read_run(done)
            " ".join(f"{key} {value:.4f}" for key, value in found.metrics.items())
        finally:
            (done / name).write_bytes(whole)
            (done / "record.json").write_bytes(kept["record.json"])

    return once


def weights(folder: Path) -> Target:
    """Fuzz files of weights, a run's weights and queries, saved embedders, and checkpoints of a run that resumes."""
    model = load_backbone("demo_vit", "random")
    state = {key: value for key, value in model.state_dict().items() if "blocks" not in key}
    small = torch.nn.Module()
    for key, value in state.items():
        small.register_buffer(key.replace(".", "_"), value)
    buffer = io.BytesIO()
    torch.save(small.state_dict(), buffer)
    files = {"w.safetensors": save(dict(small.state_dict())), "w.pth": buffer.getvalue()}
    done = _trained(folder)
    vptsp_core.load(done, "cpu").save(done / "embedder.safetensors")
    kept = {name: (done / name).read_bytes() for name in ("model.safetensors", "embedder.safetensors", "queries.npz")}
    record = (done / "record.json").read_bytes()
    begun, checkpoint = _begun(folder)

    def once(rng: np.random.Generator, place: Path) -> None:
        kind = rng.integers(20)
        if kind < 12:
            name = list(files)[kind % 2]
            (place / name).write_bytes(_in_header(files[name], rng, list(files.values())))
            load_weights(small, place / name)
        elif kind < 19:
            name = list(kept)[kind % 3]
            content = _in_header(kept[name], rng, list(kept.values()))
            (done / name).write_bytes(content)
            if name != "embedder.safetensors":  # with a checksum that fits, so that the reader goes on
                reseal_run(done)
            try:
                if name == "queries.npz":
                    _ = read_run(done).queries
                else:
                    vptsp_core.load(done if name == "model.safetensors" else done / name, "cpu")
            finally:
                (done / name).write_bytes(kept[name])
                (done / "record.json").write_bytes(record)
        else:
            begun.mkdir(parents=True, exist_ok=True)
            content = _in_header(checkpoint, rng, [checkpoint])
            (begun / "checkpoint.pt").write_bytes(content)
            try:
                run(_config(epochs=2), data=folder / "images", results=folder, device="cpu", progress=False)
            finally:
                for path in begun.iterdir():
                    path.unlink()

    return once


def images(folder: Path) -> Target:
    """Pictures of every kind."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))
    exif, samples = Image.Exif(), []
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM"):
        buffer = io.BytesIO()
        picture.save(buffer, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "TIFF", "WEBP") else {}))
        samples.append(buffer.getvalue())

    def once(rng: np.random.Generator, place: Path) -> None:
        (place / "i.jpg").write_bytes(mutated(samples[rng.integers(len(samples))], rng, samples))
        read_image(place / "i.jpg", as_shown=rng.random() < 0.7)

    return once


def _in_header(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """Mutate the first or last kilobyte, which has names, kinds and shapes, or the whole content."""
    cut = [1000, len(content) - 1000, 0][rng.integers(3)]
    cut = min(max(cut, 0), len(content))
    if rng.random() < 0.5:
        return mutated(content[:cut], rng, others) + content[cut:]
    return content[:cut] + mutated(content[cut:], rng, others)


def _config(**changes):
    small = dict(dataset="folder", weights="random", method="linear", bitfit=False, batch=2, samples_per_class=2)
    return preset("smoke", **{**small, "steps_per_epoch": 1, **changes})


def _trained(folder: Path) -> Path:
    """Make a run on four classes of two images; return its folder."""
    for place in (f"{c}/{i}.png" for c in "abcd" for i in range(2)):
        path = folder / "images" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(len(str(path))).integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    return run(_config(), data=folder / "images", results=folder, device="cpu", progress=False).path


def _begun(folder: Path) -> tuple[Path, bytes]:
    """Stop a run of two epochs after the first; return its folder and its checkpoint."""

    def stop(history):
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        run(_config(epochs=2), data=folder / "images", results=folder, device="cpu", progress=False, on_epoch=stop)
    (path,) = folder.glob("runs/*/checkpoint.pt")
    return path.parent, path.read_bytes()


TARGETS: dict[str, Callable[[Path], Target]] = {
    "config": config, "lists": lists, "csv": csv, "weights": weights, "images": images,
}  # fmt: skip


def fuzz(name: str, seed: int, *, seconds: float = 0, executions: int = 0, first: int = 0) -> tuple[int, list[str]]:
    """Fuzz one target for ``seconds`` or ``executions``; return the count and the errors that are no `VptspError`."""
    failures: list[str] = []
    end, number = time.monotonic() + seconds, first
    smaller = mock.patch.object(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # large images take minutes and find nothing
    with tempfile.TemporaryDirectory(prefix="vptsp-fuzz-") as folder, warnings.catch_warnings(), smaller:
        warnings.simplefilter("ignore")
        once = TARGETS[name](Path(folder))
        place = Path(folder) / "place"
        place.mkdir()
        while number - first < executions or time.monotonic() < end:
            rng = np.random.default_rng([seed, list(TARGETS).index(name), number])
            try:
                once(rng, place)
            except VptspError as error:
                if not str(error).strip():
                    failures.append(f"{name} {number}: an error without a message")
            except Exception:
                told = traceback.format_exc().strip().splitlines()
                failures.append(f"{name} {number}: {told[-1][:200]} ({' '.join(told[-3].split())[:200]})")
            number += 1
    return number - first, failures


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Give mutated input to every reader.")
    parser.add_argument("--seconds", type=float, default=60, help="of all targets together (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--number", type=int, help="repeat this execution of the target of --only")
    args = parser.parse_args()
    found = 0
    for name in args.only:
        if args.number is None:
            count, failures = fuzz(name, args.seed, seconds=args.seconds / len(args.only))
        else:
            count, failures = fuzz(name, args.seed, executions=1, first=args.number)
        kinds = {failure.partition(": ")[2]: failure for failure in reversed(failures)}
        print(f"{name:8} {count:8,} executions, {len(failures)} uncaught, of {len(kinds)} kind(s)", flush=True)
        print("".join(f"  {failure}\n" for failure in kinds.values()), end="", flush=True)
        found += len(failures)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())

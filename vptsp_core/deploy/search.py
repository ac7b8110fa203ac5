"""python -m vptsp_core search: the images of an index that are nearest to some others, as a picture and a table."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from vptsp_core.data.folder import outside_images
from vptsp_core.deploy.index import ImageIndex, read_index, same_model
from vptsp_core.deploy.picture import found_images
from vptsp_core.deploy.update import PLACE, embed_files, images_in, left_out, model_path, refuse_none
from vptsp_core.errors import DataError, VptspError, printable
from vptsp_core.figures.style import file_of
from vptsp_core.method.neighbours import positive
from vptsp_core.runs.embedder import Embedder, load
from vptsp_core.system.files import write_bytes

COLUMNS = ["query", "rank", "path", "cosine"]
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # the beginnings of a cell that a spreadsheet computes
MADE_BY = "vptsp_core search"  # in the picture's metadata: a later search may replace it
DRAWN, DRAWN_EACH = 10, 30  # queries in the picture, and neighbours of each; the table has them all


def main(argv: Sequence[str]) -> int:
    """Search, print what was found, write the answer as PNG and CSV. Returns the exit status.

    Of a folder, images that cannot be read are left out, with one warning; one that is named itself is an error.
    """
    parser = argparse.ArgumentParser(
        "python -m vptsp_core search", description="find the images of an index that are nearest to others"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="what to search for: images, or folders of them")
    parser.add_argument("-k", type=int, default=10, help="neighbours of each (default: 10)")
    parser.add_argument("--index", metavar="INDEX", default=PLACE, help=f"made by `index` (default: {PLACE})")
    parser.add_argument("--model", metavar="RUN", help="the index's model, where it has moved (default: where it was)")
    parser.add_argument("--weights", metavar="FILE", help="the backbone's, where they have moved")
    parser.add_argument("--to", metavar="NAME", default="search", help="writes NAME.png and NAME.csv (default: search)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: a GPU where there is one)")
    args = parser.parse_args(argv)
    positive("k", args.k)
    png, csv = (Path(f"{args.to}.{kind}").expanduser().absolute() for kind in ("png", "csv"))
    _refuse_to_replace(png, csv)
    index, asked = read_index(args.index), _queries(args.images)
    for path in (png, csv):
        outside_images(path, index.root, "--to")
    embedder = load(args.model or model_path(index), args.device, weights=args.weights or index.model["weights"])
    same_model(index, embedder.checksum())
    queries, embeddings = _embedded(embedder, asked)
    table = neighbours(index, queries, *index.search(embeddings, args.k))
    for query, rows in table.groupby("query", sort=False):
        print(printable(str(query)))
        for row in rows.itertuples():
            print(f"  {row.rank:3d}  {row.cosine:.4f}  {printable(str(row.path))}")
    drawn = table[table["query"].isin(queries[:DRAWN]) & (table["rank"] <= DRAWN_EACH)]
    picture = file_of(found_images(drawn, Path(index.root)), dpi=120, metadata={"Software": MADE_BY})
    write_bytes(png, picture.getvalue())
    write_bytes(csv, _csv(table))
    part = "" if len(drawn) == len(table) else f" ({len(drawn)} of {len(table)} rows)"
    print(f"{printable(str(png))}{part}\n{printable(str(csv))}")
    return 0


def neighbours(index: ImageIndex, queries: Sequence[str], scores: np.ndarray, places: np.ndarray) -> pd.DataFrame:
    """A row a neighbour: ``query`` and ``path`` (under the indexed folder), ``rank`` from 1, ``cosine``.

    scores and places, (queries, k), are what `ImageIndex.search` gives.
    """
    rows = [
        (query, rank, index.names[place], float(score))
        for query, of_query, at in zip(queries, scores, places, strict=True)
        for rank, (score, place) in enumerate(zip(of_query, at, strict=True), 1)
        if place >= 0
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _csv(table: pd.DataFrame) -> bytes:
    """For a spreadsheet too, to which =A1.jpg would be a formula: ./=A1.jpg is none, and the same path."""
    written = table.copy()
    for key in ("query", "path"):
        written[key] = [f"./{name}" if name.startswith(FORMULA) else name for name in table[key]]
    # with a byte order mark, without which Excel reads another encoding
    return written.to_csv(index=False, float_format="%.6f").encode("utf-8-sig", errors="backslashreplace")


def _refuse_to_replace(png: Path, csv: Path) -> None:
    """Refuse to replace what no search wrote, such as a photograph of that name; a search writes both files."""
    existing = [path for path in (png, csv) if path.exists()]
    try:
        with Image.open(png) as picture:
            ours = picture.info.get("Software") == MADE_BY
    except (OSError, ValueError):
        ours = False
    if existing and not ours:
        raise VptspError(f"{existing[0]} exists already and no search wrote it; name another place with --to")


def _queries(given: Sequence[str]) -> dict[str, bool]:
    """Images, and those in folders; each once, with whether it was named itself."""
    paths: dict[str, bool] = {}
    for path in (Path(name).expanduser() for name in given):
        named = not path.is_dir()
        inside = [path] if named else [path / name for name in images_in(path)]
        if not inside:
            raise DataError(f"{path} holds no images; name another folder, or images")
        paths |= {str(each): named or paths.get(str(each), False) for each in inside}
    return paths


def _embedded(embedder: Embedder, asked: dict[str, bool]) -> tuple[list[str], np.ndarray]:
    """Those of `_queries` that can be read, and their embeddings (N, d)."""
    readable: list[str] = []
    vectors: list[np.ndarray] = []
    unreadable: dict[str, str] = {}
    for names, embeddings, faults in embed_files(embedder, Path(), list(asked)):
        readable += names
        vectors += [embeddings] if names else []
        unreadable |= faults
    for name, reason in unreadable.items():
        if asked[name]:
            raise DataError(reason)
    refuse_none(len(readable), unreadable, "search")
    if unreadable:
        warnings.warn(left_out(list(unreadable.values())), stacklevel=3)
    return readable, np.concatenate(vectors)

"""python -m vptsp_core search: find the nearest images of an index, and write them as a picture and a table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vptsp_core.data.folder import refuse_inside_images
from vptsp_core.deploy.index import read_index, same_model
from vptsp_core.deploy.picture import found_images
from vptsp_core.deploy.update import PLACE, embed_files, images_in, model_path
from vptsp_core.errors import VptspError, printable, refuse_empty
from vptsp_core.figures.style import file_of
from vptsp_core.method.inputs import positive
from vptsp_core.runs.embedder import load
from vptsp_core.system.files import write_bytes

COLUMNS = ["query", "rank", "path", "cosine"]
DRAWN, DRAWN_EACH = 10, 30  # queries in the picture, and neighbours per query; the table has all


def main(argv: Sequence[str]) -> int:
    """Search, print the neighbours, and write them as PNG and CSV. Return the exit status.

    Images that cannot be read are left out with a warning. It is an error if none can be read.
    """
    parser = argparse.ArgumentParser(
        "python -m vptsp_core search", description="find the images of an index that are nearest to others"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="images to search for, or folders of images")
    parser.add_argument("-k", type=int, default=10, help="neighbours per image (default: 10)")
    parser.add_argument("--index", metavar="INDEX", default=PLACE, help=f"made by `index` (default: {PLACE})")
    parser.add_argument("--model", metavar="RUN", help="the index's model, if it has moved since")
    parser.add_argument("--weights", metavar="FILE", help="the backbone's weights, if they have moved since")
    parser.add_argument("--to", metavar="NAME", default="search", help="writes NAME.png and NAME.csv (default: search)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    args = parser.parse_args(argv)
    refuse_empty({name: value for name, value in vars(args).items() if name != "images"})
    positive("k", args.k)
    png, csv = (Path(f"{args.to}.{kind}").expanduser().absolute() for kind in ("png", "csv"))
    _refuse_to_replace(png, csv)
    index = read_index(args.index)
    asked = dict.fromkeys(str(image) for name in args.images for image in _images(Path(name).expanduser()))
    for path in (png, csv):  # a later call would find them among the images
        for folder in (index.root, *(name for name in args.images if Path(name).expanduser().is_dir())):
            refuse_inside_images(path, folder, "--to")
    embedder = load(args.model or model_path(index), args.device, weights=args.weights or index.model["weights"])
    same_model(index, embedder.checksum())
    embeddings: dict[str, np.ndarray] = {}
    embed_files(embedder, Path(), list(asked), embeddings)
    queries = list(embeddings)
    scores, places = index.search(np.stack(list(embeddings.values())), min(args.k, len(index.names)))
    rows = [
        (query, rank, index.names[place], score)
        for query, cosines, nearest in zip(queries, scores.tolist(), places.tolist(), strict=True)
        for rank, (score, place) in enumerate(zip(cosines, nearest, strict=True), 1)
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    for query, neighbours in table.groupby("query", sort=False):
        print(printable(str(query)))
        for row in neighbours.itertuples():
            print(f"  {row.rank:3d}  {row.cosine:.4f}  {printable(str(row.path))}")
    drawn = table[table["query"].isin(queries[:DRAWN]) & (table["rank"] <= DRAWN_EACH)]
    text = table.to_csv(index=False, float_format="%.6f")
    write_bytes(csv, text.encode("utf-8-sig", errors="backslashreplace"))  # Excel needs the byte order mark
    # After the CSV, by which the next search knows that a search wrote both.
    write_bytes(png, file_of(found_images(drawn, Path(index.root)), dpi=120).getvalue())
    part = "" if len(drawn) == len(table) else f" ({len(drawn)} of {len(table)} rows)"
    print(f"{printable(str(png))}{part}\n{printable(str(csv))}")
    return 0


def _images(path: Path) -> list[Path]:
    return [path / name for name in images_in(path)] if path.is_dir() else [path]


def _refuse_to_replace(png: Path, csv: Path) -> None:
    """Raise VptspError if a file exists that no search wrote, such as a photograph of that name."""
    existing = [path for path in (png, csv) if path.exists()]
    if existing and not (csv.is_file() and csv.read_bytes().startswith(",".join(COLUMNS).encode("utf-8-sig"))):
        raise VptspError(f"{existing[0]} exists already and no search wrote it; name another place with --to")

"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import numpy as np

import vptsp_core
from vptsp_core.data.glyphs import GlyphSet

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_python_block_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.S)
    images = GlyphSet("test", images_per_class=1)
    for name, place in (("a", 0), ("b", 1), ("query", 1)):
        images.image(place).save(tmp_path / f"{name}.png")
    preset, short = vptsp_core.preset, {"epochs": 1, "steps_per_epoch": 2}
    monkeypatch.setattr(vptsp_core, "preset", lambda name, **changes: preset(name, **changes, **short))
    monkeypatch.setenv("VPTSP_RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert names["config"].dataset == "glyphs" and names["done"].path.is_relative_to(tmp_path / "results")
    assert names["embeddings"].shape == (1, names["config"].embed_dim)
    np.testing.assert_allclose(np.linalg.norm(names["embeddings"]), 1, rtol=1e-5)
    assert names["places"].tolist() == [[1]]  # the query is b.png
    np.testing.assert_allclose(names["scores"], 1, atol=1e-5)
    assert capsys.readouterr().out.startswith("0.")

"""The embedded data: three disjoint sets of letters, with the same bytes every time."""

from itertools import combinations

import numpy as np
import pytest
from bench.glyph_classes import choose_classes
from PIL import Image

from vptsp_core.data import glyphs
from vptsp_core.data.glyphs import drawing


def test_splits_are_disjoint_and_have_their_sizes():
    classes = glyphs.classes()
    assert [len(classes[s]) for s in glyphs.SPLITS] == [746, 100, 100]
    for one, other in combinations(glyphs.SPLITS, 2):
        assert not set(classes[one]) & set(classes[other])
    assert all(len(set(letters)) == len(letters) for letters in classes.values())


def test_the_stored_classes_are_those_that_the_rule_chooses():
    assert choose_classes() == glyphs.classes()


def test_train_and_test_hold_families():
    """At least a quarter of the classes are letters with a mark that have a sibling among the classes."""
    for split in ("train", "test"):
        marked = [name for name in glyphs.class_names(split) if " WITH " in name]
        stems = [name.split(" WITH ")[0].split(" ", 1)[1] for name in marked]
        assert sum(stems.count(stem) > 1 for stem in stems) >= 25


@pytest.mark.parametrize("style", ["DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono-Bold.ttf"])
def test_no_two_classes_are_the_same_glyph(style):
    """Only in upright styles: an italic Cyrillic i looks like a u."""
    letters = "".join(glyphs.classes().values())
    drawn = {drawing.fit(c, style, 32, 32).tobytes() for c in letters}
    assert len(drawn) == len(letters)


@pytest.mark.parametrize("split", ["train", "test"])
def test_shapes_and_types(split):
    images, labels, names = glyphs.render(split, 3, 24)
    assert images.shape == (300, 24, 24, 3) and images.dtype == np.uint8
    assert labels.dtype == np.int64 and np.array_equal(labels, np.repeat(np.arange(100), 3))
    assert len(set(names)) == 100
    assert images.std(axis=(1, 2, 3)).min() > 5  # nothing is blank
    with pytest.raises(ValueError):
        images[0] = 0


def test_an_image_does_not_depend_on_the_number_of_images():
    few = glyphs.render("test", 1, 24)[0]
    many = glyphs.render.__wrapped__("test", 2, 24)[0].reshape(100, 2, 24, 24, 3)
    assert np.array_equal(few, many[:, 0])
    other = glyphs.render("test", 1, 24, seed=1)[0]
    assert (other != few).any(axis=(1, 2, 3)).all()


def test_benchmark():
    benchmark = glyphs.load_glyphs(images_per_class=2)
    assert benchmark.name == "glyphs" and benchmark.gallery is None
    assert not set(benchmark.train.class_names) & set(benchmark.test.class_names)
    image = benchmark.test.image(7)
    assert isinstance(image, Image.Image) and image.mode == "RGB" and image.size == (40, 40)
    assert np.array_equal(np.asarray(image), benchmark.test.images[7])
    assert len(benchmark.test) == 200 and benchmark.test.num_classes == 100
    again = glyphs.GlyphSet("test", 2)
    assert benchmark.test.fingerprint() == again.fingerprint() != benchmark.train.fingerprint()

"""Images to draw, and a check for every figure."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from vptsp_core.data import ImageSet


class Flat(ImageSet):
    """Images of one colour each, 30 wide and 20 high. Image i has brightness 10 i."""

    def image(self, index):
        return Image.new("RGB", (30, 20), (10 * index,) * 3)

    def fingerprint(self):
        return "flat"


def inside(fig) -> bool:
    """Return whether everything in the figure is inside its canvas."""
    box, canvas = fig.get_tightbbox(FigureCanvasAgg(fig).get_renderer()), fig.bbox_inches
    return box.x0 >= -0.01 and box.y0 >= -0.01 and box.x1 <= canvas.x1 + 0.01 and box.y1 <= canvas.y1 + 0.01

"""Images to draw, and what is asked of every figure."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from vptsp_core.data import ImageSet


class Flat(ImageSet):
    """Images of one colour each, image i of brightness 10 i, 30 wide and 20 high."""

    def image(self, index):
        return Image.new("RGB", (30, 20), (10 * index,) * 3)

    def fingerprint(self):
        return "flat"


def inside(fig) -> bool:
    """All that is drawn is on the figure's canvas."""
    box, canvas = fig.get_tightbbox(FigureCanvasAgg(fig).get_renderer()), fig.bbox_inches
    return box.x0 >= -0.01 and box.y0 >= -0.01 and box.x1 <= canvas.x1 + 0.01 and box.y1 <= canvas.y1 + 0.01

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tmv_lib.pipeline import pictures


@pytest.mark.parametrize("lines", [1, 3])
def test_a_long_title_stands_right_above_the_maps(lines):
    image, attribution = np.zeros((20, 20), np.uint8), np.eye(7)
    rows = [("facts", image, [("net", image, attribution)])] * 2
    figure = pictures.case_rows(rows, title="\n".join(["a title"] * lines))
    renderer = figure.canvas.get_renderer()
    under = figure._suptitle.get_window_extent(renderer).y0
    top = max(axis.get_tightbbox(renderer).y1 for axis in figure.axes)
    assert 0 < under - top < 0.3 * figure.dpi  # inches
    plt.close(figure)

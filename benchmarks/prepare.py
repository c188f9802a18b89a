"""Reading 200 films of 2,000 x 1,600 pixels, beside two processes of Pillow that check nothing."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from benchmarks.measure import Measured, side_by_side
from tmv_lib.data.images import read_squares

FILMS, SIZE = 200, 224


def measure() -> Iterator[Measured]:
    rng = np.random.default_rng(0)
    blurred = gaussian_filter(rng.normal(size=(2_000, 1_600)), 20)
    film = np.rint(255 * (blurred - blurred.min()) / np.ptp(blurred) + rng.normal(0, 4, blurred.shape))
    with TemporaryDirectory() as folder, ProcessPoolExecutor(2, get_context("spawn")) as processes:
        names = [f"{k}.jpeg" for k in range(FILMS)]
        paths = [Path(folder, name) for name in names]
        for path in paths:
            Image.fromarray(film.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        list(processes.map(one, paths[:2]))  # both have imported what they need
        read = partial(read_squares, Path(folder), names, size=SIZE, how="stretch", progress=iter)
        ours, theirs = side_by_side(read, lambda: np.stack([*processes.map(one, paths)]), repeats=3)
    yield Measured("`images.read_squares`", ours.seconds, "s")
    yield Measured("two processes of Pillow", theirs.seconds, "s")
    yield Measured("ours takes so many times theirs", ours.seconds / theirs.seconds, "times", at_most=1.3)
    yield Measured("levels differ by at most", float(np.abs(ours.result[1] - theirs.result).max()), "", at_most=0)


def one(path: Path) -> np.ndarray:
    """A file as a square."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR))

"""Does the answer hang on what a map ranks first? Deletion and insertion of cells, against a random order."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.ndimage import gaussian_filter


def deletion_and_insertion(
    probability: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    orders: Mapping[str, np.ndarray],
    *,
    fractions: Sequence[float],
) -> dict[tuple[str, str], np.ndarray]:
    """Mean probability (fractions, n) as cells are taken away or put in, the highest of each order's maps first.

    probability: of the explained class, from levels in [0, 1] shaped as images, uint8 (n, height, width[, 3]).
    orders: name to maps (n, h, w) whose cells are the units. fractions: of the cells, rising from 0 to 1. What is
    taken away becomes the blurred image, sigma a tenth of the side. Keys: ("deletion" or "insertion", name of the
    order). Petsiuk et al. 2018; a good map makes deletion fall and insertion rise faster than a random order does.
    """
    if (fractions[0], fractions[-1]) != (0, 1):
        raise ValueError(f"fractions must run from 0 to 1, found {fractions[0]} to {fractions[-1]}")
    levels = images.astype(np.float32) / 255.0
    side, shape = levels.shape[1], (*levels.shape[:3], *[1] * (levels.ndim - 3))  # channels share a cell
    blurred = gaussian_filter(levels, sigma=(0, side / 10, side / 10, 0)[: levels.ndim])
    # All and nothing are the same images in every order: they are read once.
    whole, nothing = probability(levels), probability(blurred)
    curves = {}
    for name, maps in orders.items():
        reached = [_first(maps, fraction, side).reshape(shape) for fraction in fractions[1:-1]]
        deleted = [probability(np.where(cells, blurred, levels)) for cells in reached]
        inserted = [probability(np.where(cells, levels, blurred)) for cells in reached]
        curves["deletion", name] = np.stack([whole, *deleted, nothing])
        curves["insertion", name] = np.stack([nothing, *inserted, whole])
    return curves


def random_order(maps: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Maps (n, h, w) that rank the cells of each case by lot."""
    cells = np.broadcast_to(np.arange(maps[0].size, dtype=np.float32), (len(maps), maps[0].size))
    return rng.permuted(cells, axis=1).reshape(maps.shape)


def area(curve: np.ndarray, fractions: Sequence[float]) -> np.ndarray:
    """Area under each case's curve, (fractions, n) to (n,): the mean probability over fractions from 0 to 1."""
    return np.trapezoid(curve, fractions, axis=0)


def _first(maps: np.ndarray, fraction: float, side: int) -> np.ndarray:
    """Boolean (n, side, side): the pixels of the cells that rank among the first `fraction` of their map."""
    n, h, w = maps.shape
    rank = np.argsort(np.argsort(-maps.reshape(n, -1), axis=1, kind="stable"), axis=1).reshape(n, h, w)
    rows, columns = (np.arange(side) * h) // side, (np.arange(side) * w) // side
    return rank[:, rows[:, None], columns[None, :]] < round(fraction * h * w)

"""Does the reason survive a change that does not matter?

Behaviour is passed in as `explain(levels)`; this module knows no model.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter, zoom

from tmv_lib.explanations.attribution import MINIMUM_GRID, Explained
from tmv_lib.pipeline.files import Images
from tmv_lib.stability.perturbations import Perturbation, inverse, valid_cells, warp
from tmv_lib.statistics.ranking import rank_correlation

Explain = Callable[[np.ndarray], Explained]  # grey levels (n, side, side) to logits and maps

SIMILARITIES = ("rank_correlation", "structural_similarity", "top_overlap")
MEASURES = (*SIMILARITIES, "centre_shift")

# SSIM's window of 11 pixels needs room: maps are brought to four times their grid first.
SSIM_ZOOM = 4
BATCHES = 8  # in memory at once, for several processes to share


def top_overlap(a: np.ndarray, b: np.ndarray, *, share: float = 0.1) -> np.ndarray:
    """Intersection over union of the cells with the highest tenth of values, rows of (n, cells); at least one cell.

    All cells that tie with the last of them belong to the top; NaN where a row is constant.
    """
    k = max(1, round(share * a.shape[1]))
    top = [values >= np.partition(values, -k, axis=1)[:, [-k]] for values in (a, b)]
    overlap = (top[0] & top[1]).sum(1) / (top[0] | top[1]).sum(1)
    return np.where((np.ptp(a, axis=1) > 0) & (np.ptp(b, axis=1) > 0), overlap, np.nan)


def structural_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM (Wang et al. 2004) of each pair of maps (n, h, w) scaled to [0, 1]: Gaussian, sigma 1.5, data range 1.

    NaN where a map is constant, which has no scale.
    """
    x, y = (zoom(_unit(maps), (1, SSIM_ZOOM, SSIM_ZOOM), order=1, grid_mode=True, mode="nearest") for maps in (a, b))
    smooth = partial(gaussian_filter, sigma=(0, 1.5, 1.5), truncate=3.5)
    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    # SSIM = (2 mx my + c1)(2 cov + c2) / ((mx^2 + my^2 + c1)(vx + vy + c2)), averaged where the window fits.
    ssim = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    ssim /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    varied = (np.ptp(a, axis=(1, 2)) > 0) & (np.ptp(b, axis=(1, 2)) > 0)
    return np.where(varied, ssim[:, 5:-5, 5:-5].mean((1, 2)), np.nan)


def centre_shift(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance in pixels of the centres of mass of the positive parts of maps (n, h, w); NaN where one is empty."""
    return np.linalg.norm(_centre(a) - _centre(b), axis=1)


def _centre(maps: np.ndarray) -> np.ndarray:
    positive = np.maximum(maps, 0).astype(float)
    total = positive.sum((1, 2))[:, None]
    moments = [positive.sum(other) @ np.arange(n) for other, n in zip((2, 1), maps.shape[1:])]
    return np.divide(np.stack(moments, axis=1), total, out=np.full((len(maps), 2), np.nan), where=total > 0)


def _unit(maps: np.ndarray) -> np.ndarray:
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return np.divide(maps - low, high - low, out=np.zeros(maps.shape), where=high > low)


def stability(
    explain: Explain,
    images: Images,
    perturbations: dict[str, Perturbation],
    *,
    target: np.ndarray,
    threshold: float = 0.0,
    original: Explained | None = None,
    batch_size: int = 64,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> pd.DataFrame:
    """Compare each case's map with the map of the perturbed case, brought back to where it was.

    explain: logits and signed maps of grey levels in [0, 1], (n, side, side). images: uint8 (n, side, side).
    target: +1 or -1 a case, the class explained, the same before and after. threshold: on the logit, above which
    the model says positive. original: what `explain` says of the unchanged images, where that is known.
    Returns one row a case and perturbation: `case` (row of `images`), `perturbation`, each of MEASURES
    (`centre_shift` in pixels of the image), `flipped` (the decision changed) and `logit` (after the change). Where a
    perturbation moves the image, `<measure>_floor` is what interpolation alone leaves of a perfectly equivariant
    explainer, else NaN. What a constant or an empty map leaves undefined is NaN.
    Raises ValueError for arguments that do not fit, maps below 7 x 7, and a perturbation that leaves less than half of
    the cells to compare.
    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[1] != images.shape[2] or not images.size:
        raise ValueError(
            f"images must be uint8 (n, side, side[, 3]), at least one, found {images.dtype} {images.shape}"
        )
    if np.shape(target) != images.shape[:1] or not np.isin(target, (-1, 1)).all():
        raise ValueError(f"target must be +1 or -1 for each of {len(images)} images")
    if not perturbations:
        raise ValueError("perturbations must name at least one change, found none")
    rows = []
    at_once = BATCHES * batch_size
    for start in progress(range(0, len(images), at_once)):
        batch = slice(start, start + at_once)
        levels = images[batch].astype(np.float32) / 255.0
        before = explain(levels) if original is None else Explained(original.logit[batch], original.maps[batch])
        _check(before, len(levels), before.maps.shape[1:])
        sign, cell = target[batch, None, None], images.shape[1] / before.maps.shape[1]
        for name, perturbation in perturbations.items():
            after = _check(explain(perturbation.apply(levels)), len(levels), before.maps.shape[1:])
            try:
                compared = _compare(before.maps * sign, after.maps * sign, perturbation.matrix, cell)
            except ValueError as error:
                raise ValueError(f"perturbation {name!r}: {error}") from None
            decided = {"flipped": (before.logit > threshold) != (after.logit > threshold), "logit": after.logit}
            case = np.arange(start, start + len(levels))
            rows.append(pd.DataFrame({"case": case, "perturbation": name, **compared, **decided}))
    return pd.concat(rows, ignore_index=True)


def _check(seen: Explained, n: int, grid: tuple[int, ...]) -> Explained:
    if seen.logit.shape != (n,) or seen.maps.shape != (n, *grid) or len(grid) != 2 or grid[0] != grid[1]:
        raise ValueError(
            f"explain and original must hold logit ({n},) and maps ({n}, h, h), the same h for every image, "
            f"found {seen.logit.shape} and {seen.maps.shape}"
        )
    if grid[0] < MINIMUM_GRID:
        raise ValueError(f"maps must be at least {MINIMUM_GRID} x {MINIMUM_GRID} to be compared, found {grid}")
    if not (np.isfinite(seen.logit).all() and np.isfinite(seen.maps).all()):
        raise ValueError("explain must return finite logits and maps, found one that is not")
    return seen


def _compare(
    before: np.ndarray, after: np.ndarray, matrix: np.ndarray | None, cell: float
) -> dict[str, np.ndarray | float]:
    if matrix is None:
        everywhere = np.ones(before.shape[1:], dtype=bool)
        floors = dict.fromkeys((f"{measure}_floor" for measure in MEASURES), np.nan)
        return _measures(before, after, everywhere, cell) | floors
    back, valid = inverse(matrix), valid_cells(before.shape[1:], matrix)
    if 2 * valid.sum() < valid.size:
        raise ValueError(f"too large a change, {valid.sum()} of {valid.size} cells stay in the image, half are needed")
    equivariant = _measures(before, warp(warp(before, matrix), back), valid, cell)
    return _measures(before, warp(after, back), valid, cell) | {f"{key}_floor": x for key, x in equivariant.items()}


def _measures(a: np.ndarray, b: np.ndarray, valid: np.ndarray, cell: float) -> dict[str, np.ndarray | float]:
    flat = a[:, valid], b[:, valid]
    # Cells that are not compared are alike in both, and lie within the range of the others.
    alike = [np.where(valid, maps, rows.min(1)[:, None, None]) for maps, rows in zip((a, b), flat)]
    return {
        "rank_correlation": rank_correlation(*flat),
        "structural_similarity": structural_similarity(*alike),
        "top_overlap": top_overlap(*flat),
        "centre_shift": cell * centre_shift(a * valid, b * valid),
    }


def per_case(compared: pd.DataFrame) -> pd.DataFrame:
    """One row a case of `stability`: the mean of each measure over the perturbations, and whether any flipped it.

    Means are over the perturbations for which the measure is defined, NaN where it is for none. `n_undefined` counts
    the perturbations without a rank correlation: the map was constant before, or became so.
    """
    cases = compared.groupby("case")
    undefined = compared["rank_correlation"].isna().groupby(compared["case"]).sum()
    return cases[list(MEASURES)].mean().assign(flipped=cases["flipped"].any(), n_undefined=undefined)

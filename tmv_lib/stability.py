"""Does the reason survive a change that does not matter?

Behaviour is passed in as `explain(levels)`; this module knows no model.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter, zoom
from scipy.stats import rankdata
from torch.nn import functional

from tmv_lib.explanations import Explained

# SSIM's window of 11 pixels needs room: maps are brought to four times their grid first.
SSIM_ZOOM = 4


class Perturbation(NamedTuple):
    """A change that should not matter.

    apply: grey levels (n, height, width) in [0, 1] to the same. matrix: the 2 x 2 rotation and shift, (2, 3) in
    units of half a side, that a geometric change samples with, or None where nothing moves.
    """

    apply: Callable[[np.ndarray], np.ndarray]
    matrix: np.ndarray | None = None


def rotation(degrees: float) -> Perturbation:
    """Turn about the centre; what comes in from outside repeats the border."""
    angle = np.deg2rad(degrees)
    return _affine(np.array([[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0]]))


def translation(share: float) -> Perturbation:
    """Move right and down by a share of the side."""
    return _affine(np.array([[1.0, 0.0, -2 * share], [0.0, 1.0, -2 * share]]))


def brightness(share: float) -> Perturbation:
    """Add a share of the full range."""
    return Perturbation(lambda levels: np.clip(levels + np.float32(share), 0, 1))


def contrast(factor: float) -> Perturbation:
    """Multiply the distance of every level from the image's mean."""

    def apply(levels: np.ndarray) -> np.ndarray:
        mean = levels.mean((1, 2), keepdims=True)
        return np.clip((levels - mean) * np.float32(factor) + mean, 0, 1)

    return Perturbation(apply)


def noise(sigma: float, *, seed: int) -> Perturbation:
    """Add Gaussian noise of standard deviation `sigma`, the same field for every image."""

    def apply(levels: np.ndarray) -> np.ndarray:
        field = np.random.default_rng(seed).normal(0, sigma, levels.shape[1:]).astype(np.float32)
        return np.clip(levels + field, 0, 1)

    return Perturbation(apply)


def blur(sigma: float) -> Perturbation:
    """Gaussian blur of `sigma` pixels."""
    return Perturbation(lambda levels: gaussian_filter(levels, sigma=(0, sigma, sigma)))


def _affine(matrix: np.ndarray) -> Perturbation:
    return Perturbation(partial(warp, matrix=matrix), matrix)


def warp(levels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Sample (n, h, w) bilinearly where `matrix` sends each pixel; outside repeats the border."""
    tensor = torch.from_numpy(np.ascontiguousarray(levels, dtype=np.float32))[:, None]
    theta = torch.from_numpy(matrix.astype(np.float32)).expand(len(levels), 2, 3)
    grid = functional.affine_grid(theta, list(tensor.shape), align_corners=False)
    return functional.grid_sample(tensor, grid, padding_mode="border", align_corners=False)[:, 0].numpy()


def inverse(matrix: np.ndarray) -> np.ndarray:
    """The (2, 3) affine map that undoes `matrix`."""
    return np.linalg.inv(np.vstack([matrix, [0.0, 0.0, 1.0]]))[:2]


def valid_cells(shape: tuple[int, int], matrix: np.ndarray) -> np.ndarray:
    """Boolean (h, w): cells whose centre lies inside the image before and after the change."""
    rows, columns = (2 * np.arange(n) + 1 - n for n in shape)
    x, y = np.meshgrid(columns / shape[1], rows / shape[0])
    moved = inverse(matrix) @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    return (np.abs(moved) <= 1).all(0).reshape(shape)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman correlation of each pair of rows, (n, cells) each; average ties; NaN where a row is constant."""
    ranks = [rankdata(values, axis=1) for values in (a, b)]
    centred = [rank - rank.mean(1, keepdims=True) for rank in ranks]
    scale = np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    product = (centred[0] * centred[1]).sum(1)
    return np.divide(product, scale, out=np.full(len(a), np.nan), where=scale > 0)


def top_overlap(a: np.ndarray, b: np.ndarray, *, share: float = 0.1) -> np.ndarray:
    """Intersection over union of the cells with the highest tenth of values, rows of (n, cells); at least one cell."""
    k = max(1, round(share * a.shape[1]))
    top = [np.argsort(-values, axis=1, kind="stable")[:, :k] for values in (a, b)]
    common = (top[0][:, :, None] == top[1][:, None, :]).sum((1, 2))
    return common / (2 * k - common)


def structural_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM (Wang et al. 2004) of each pair of maps (n, h, w) scaled to [0, 1]: Gaussian, sigma 1.5, data range 1.

    A constant map is scaled to zeros.
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
    return ssim[:, 5:-5, 5:-5].mean((1, 2))


def centre_shift(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance between the centres of mass of the positive parts of maps (n, h, w), as a share of the side."""
    return np.linalg.norm(_centre(a) - _centre(b), axis=1)


def _centre(maps: np.ndarray) -> np.ndarray:
    positive = np.maximum(maps, 0)
    total = positive.sum((1, 2))
    rows, columns = ((np.arange(n) + 0.5) / n for n in maps.shape[1:])
    sums = np.stack([(positive.sum(2) * rows).sum(1), (positive.sum(1) * columns).sum(1)], axis=1)
    return np.divide(sums, total[:, None], out=np.full((len(maps), 2), np.nan), where=total[:, None] > 0)


def _unit(maps: np.ndarray) -> np.ndarray:
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return np.divide(maps - low, high - low, out=np.zeros(maps.shape), where=high > low)


def stability(
    explain: Callable[[np.ndarray], Explained],
    images: np.ndarray,
    perturbations: dict[str, Perturbation],
    *,
    target: np.ndarray,
    threshold: float = 0.0,
    original: Explained | None = None,
    batch_size: int = 64,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> pd.DataFrame:
    """Compare each case's map with the map of the perturbed case, brought back to where it was.

    explain: logits and signed maps of grey levels in [0, 1], (n, height, width). images: uint8 (n, height, width).
    target: +1 or -1 a case, the class explained, the same before and after. threshold: on the logit, above which
    the model says positive. original: what `explain` says of the unchanged images, where that is known.
    Returns one row a case and perturbation: `case` (row of `images`), `perturbation`, `rank_correlation`,
    `structural_similarity`, `top_overlap`, `centre_shift`, `flipped` (the decision changed), and `floor`, the rank
    correlation that interpolation alone would leave of a perfectly equivariant explainer. Constant maps give NaN.
    """
    rows = []
    for start in progress(range(0, len(images), batch_size)):
        batch = slice(start, start + batch_size)
        levels = images[batch].astype(np.float32) / 255.0
        before = explain(levels) if original is None else Explained(original.logit[batch], original.maps[batch])
        sign = target[batch, None, None]
        for name, perturbation in perturbations.items():
            after = explain(perturbation.apply(levels))
            compared = _compare(before.maps * sign, after.maps * sign, perturbation.matrix)
            flipped = (before.logit > threshold) != (after.logit > threshold)
            case = np.arange(start, start + len(levels))
            rows.append(pd.DataFrame({"case": case, "perturbation": name, **compared, "flipped": flipped}))
    return pd.concat(rows, ignore_index=True)


def _compare(before: np.ndarray, after: np.ndarray, matrix: np.ndarray | None) -> dict[str, np.ndarray]:
    valid = np.ones(before.shape[1:], dtype=bool)
    floor = np.ones(len(before))
    if matrix is not None:
        back = inverse(matrix)
        valid = valid_cells(before.shape[1:], matrix)
        after = warp(after, back)
        floor = rank_correlation(before[:, valid], warp(warp(before, matrix), back)[:, valid])
    inside = np.where(valid, before, 0), np.where(valid, after, 0)
    return {
        "rank_correlation": rank_correlation(before[:, valid], after[:, valid]),
        "structural_similarity": structural_similarity(*inside),
        "top_overlap": top_overlap(before[:, valid], after[:, valid]),
        "centre_shift": centre_shift(*inside),
        "floor": floor,
    }

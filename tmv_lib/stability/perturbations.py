"""Changes of an image that should not matter, and the way back."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter


class Perturbation(NamedTuple):
    """A change that should not matter.

    apply: levels (n, height, width) or (n, height, width, 3) in [0, 1] to the same. matrix: the 2 x 2 rotation and
    shift, (2, 3) in units of half a side, that a geometric change samples with, or None where nothing moves.
    """

    apply: Callable[[np.ndarray], np.ndarray]
    matrix: np.ndarray | None = None


def rotation(degrees: float) -> Perturbation:
    """Turn about the centre, -45 to 45 degrees, counter-clockwise where positive; outside repeats the border."""
    angle = np.deg2rad(_within(degrees, -45, 45, "rotation in degrees"))
    return _affine(np.array([[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0]]))


def translation(share: float) -> Perturbation:
    """Move right and down by a share of the side, -0.25 to 0.25; outside repeats the border."""
    shift = -2 * _within(share, -0.25, 0.25, "translation as a share of the side")
    return _affine(np.array([[1.0, 0.0, shift], [0.0, 1.0, shift]]))


def brightness(share: float) -> Perturbation:
    """Add a share of the full range, -0.5 to 0.5."""
    added = np.float32(_within(share, -0.5, 0.5, "brightness as a share of the full range"))
    return Perturbation(lambda levels: np.clip(levels + added, 0, 1))


def contrast(factor: float) -> Perturbation:
    """Multiply the distance of every level from the image's mean, by 0.5 to 2."""
    scale = np.float32(_within(factor, 0.5, 2, "contrast as a factor"))

    def apply(levels: np.ndarray) -> np.ndarray:
        mean = levels.mean(tuple(range(1, levels.ndim)), keepdims=True)
        return np.clip((levels - mean) * scale + mean, 0, 1)

    return Perturbation(apply)


def noise(sigma: float, *, seed: int) -> Perturbation:
    """Add Gaussian noise of standard deviation `sigma`, 0 to 0.5, the same field for every image."""
    sigma = _within(sigma, 0, 0.5, "standard deviation of the noise")

    def apply(levels: np.ndarray) -> np.ndarray:
        field = np.random.default_rng(seed).normal(0, sigma, levels.shape[1:]).astype(np.float32)
        return np.clip(levels + field, 0, 1)

    return Perturbation(apply)


def blur(sigma: float) -> Perturbation:
    """Gaussian blur of `sigma` pixels, 0 to 10."""
    sigma = _within(sigma, 0, 10, "blur in pixels")
    return Perturbation(lambda levels: gaussian_filter(levels, sigma=(0, sigma, sigma, 0)[: levels.ndim]))


def _within(value: float, low: float, high: float, name: str) -> float:
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], found {value:g}")
    return value


def _affine(matrix: np.ndarray) -> Perturbation:
    return Perturbation(partial(warp, matrix=matrix), matrix)


def warp(levels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Sample (n, h, w[, 3]) bilinearly where `matrix` sends each pixel; outside repeats the border. float32."""
    if levels.ndim == 4:
        return np.stack([warp(levels[..., channel], matrix) for channel in range(levels.shape[3])], axis=3)
    h, w = levels.shape[1:]
    (xx, xy, x0), (yx, yy, y0) = matrix
    # From units of half a side, whose zero is the centre, to rows and columns; the images stay apart.
    linear = np.array([[1, 0, 0], [0, yy, yx * h / w], [0, xy * w / h, xx]])
    centre = np.array([0, (h - 1) / 2, (w - 1) / 2])
    offset = centre - linear @ centre + [0, y0 * h / 2, x0 * w / 2]
    return affine_transform(levels.astype(np.float32), linear, offset, order=1, mode="nearest")


def inverse(matrix: np.ndarray) -> np.ndarray:
    """The (2, 3) affine map that undoes `matrix`."""
    return np.linalg.inv(np.vstack([matrix, [0.0, 0.0, 1.0]]))[:2]


def valid_cells(shape: tuple[int, int], matrix: np.ndarray) -> np.ndarray:
    """Boolean (h, w): cells whose centre lies inside the image before and after the change."""
    rows, columns = (2 * np.arange(n) + 1 - n for n in shape)
    x, y = np.meshgrid(columns / shape[1], rows / shape[0])
    moved = inverse(matrix) @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    return (np.abs(moved) <= 1).all(0).reshape(shape)


def mild(sizes: Mapping[str, float], *, seed: int) -> dict[str, Perturbation]:
    """The changes of the stage `stability`, each alone, by name; sizes as its section in params.yaml says them."""
    degrees, lighter = sizes["rotation"], sizes["brightness"]
    return {
        f"rotation +{degrees:g}°": rotation(degrees),
        f"rotation -{degrees:g}°": rotation(-degrees),
        "translation": translation(sizes["translation"]),
        "brighter": brightness(lighter),
        "darker": brightness(-lighter),
        "contrast": contrast(sizes["contrast"]),
        "noise": noise(sizes["noise"], seed=seed),
        "blur": blur(sizes["blur"]),
    }

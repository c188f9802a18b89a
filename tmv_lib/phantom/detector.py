"""What a detector makes of attenuation: scatter, lead letters, quantum noise, the film's curve."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.floating]

# Quanta are counted over the whole picture, so that small pixels are noisier.
SCATTER, GAIN, GAMMA, QUANTA = 0.20, 1.5, 0.45, 5.5e7


def detect(
    attenuation: Array, case: Any, *, noise: np.random.Generator, letters: np.random.Generator
) -> NDArray[np.uint8]:
    """Attenuation t to grey levels: Beer-Lambert, scatter, lead letters, quantum noise, the film's curve.

    With primary fluence `f = exp(-3.4 t)`, its wide blur `v` and scatter share `b`, the detector sees
    `d = (1 - b) f + b v`; the count in a pixel is Poisson, here its normal limit, with mean proportional to exposure
    times d; grey is `1 - (g d)^gamma`, the gain g following the root of the exposure.
    """
    size = len(attenuation)
    fluence = np.exp(-3.4 * np.maximum(attenuation, 0))
    box = 2 * round(0.07 * size) + 1
    veil = ndimage.uniform_filter(ndimage.uniform_filter(fluence, box), box)
    detected = (1 - SCATTER) * fluence + SCATTER * veil
    detected *= 1 - 0.985 * _letters(letters, case.marker, size)
    field = noise.standard_normal((size, size), dtype=np.float32)
    detected += case.noise * field * np.sqrt(detected * (size**2 / (QUANTA * case.exposure)))
    grey = 1 - np.clip(GAIN * case.exposure**0.5 * detected, 0, 1) ** GAMMA
    return np.rint(255 * grey).astype(np.uint8)


# Straight strokes of each letter, its height 1; both letters share the bowl.
R_STROKES = [((0, 0), (0, 1)), ((0, 0), (0.4, 0)), ((0, 0.5), (0.4, 0.5)), ((0.35, 0.5), (0.65, 1))]
P_STROKES = R_STROKES[:3]


def _letters(rng: np.random.Generator, marker: int, size: int) -> Array:
    """Coverage, 0 to 1, of the lead letters: R at the patient's right on every film, P opposite with the marker."""
    (r_left, r_top), (p_left, p_top) = rng.uniform(-0.02, 0.02, (2, 2)) + np.array([(-0.87, -0.90), (0.77, -0.90)])
    corner, height = int(0.20 * size), 0.14
    centre = (np.arange(size) + 0.5) * (2 / size) - 1
    right = (R_STROKES, r_left, r_top, slice(0, corner))
    portable = (P_STROKES, p_left, p_top, slice(size - corner, size))
    cover = np.zeros((size, size), np.float32)
    for strokes, left, top, columns in [right, portable][: 1 + marker]:
        u, v = np.meshgrid((centre[columns] - left) / height, (centre[:corner] - top) / height)
        bowl = np.abs(np.hypot(u - 0.4, v - 0.25) - 0.25) + 9 * (u < 0.4)
        gap = np.min([bowl, *(_distance(u, v, *stroke) for stroke in strokes)], axis=0)
        cover[:corner, columns] = np.clip((0.10 - gap) * height * size / 2 + 0.5, 0, 1)
    return cover


def _distance(u: Array, v: Array, a: tuple[float, float], b: tuple[float, float]) -> Array:
    """Distance from points (u, v) to the segment from a to b."""
    du, dv = b[0] - a[0], b[1] - a[1]
    t = np.clip(((u - a[0]) * du + (v - a[1]) * dv) / (du * du + dv * dv), 0, 1)
    return np.hypot(u - a[0] - t * du, v - a[1] - t * dv)

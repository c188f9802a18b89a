"""What every figure is computed from: checked one-dimensional arrays, and weights of cases."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]
CELLS_AT_ONCE = 2**15  # (resamples, cases) matrices are cut to 256 KiB, which stay in the cache: half the time


def as_binary(values: ArrayLike, *, name: str = "y_true", n: int | None = None) -> FloatArray:
    """One-dimensional 0s and 1s as float64; `n`, where given, is the length that `y_true` asks for."""
    array = as_finite(values, name=name, n=n)
    strangers = array[(array != 0) & (array != 1)]
    if strangers.size:
        raise ValueError(f"{name} must hold 0 and 1 only, found {strangers[0]}")
    return array


def as_finite(
    values: ArrayLike, *, name: str, n: int | None = None, low: float = -np.inf, high: float = np.inf
) -> FloatArray:
    """One-dimensional finite numbers in [low, high] as float64, never empty."""
    array = np.asarray(values, dtype=float)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, found shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} must hold at least one case, found none")
    if n is not None and array.size != n:
        raise ValueError(f"{name} must hold one value a case ({n}), found {array.size}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, found {array[~np.isfinite(array)][0]}")
    if array.min() < low or array.max() > high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], found {array.min():g} to {array.max():g}")
    return array


def as_weights(weights: ArrayLike | None, *, n: int) -> FloatArray:
    """Non-negative weights (n,) or (resamples, n), each row with a positive sum; ones where none are given."""
    if weights is None:
        return np.ones(n)
    array = np.asarray(weights, dtype=float)
    if array.ndim not in (1, 2) or array.shape[-1] != n:
        raise ValueError(f"weights must have shape ({n},) or (resamples, {n}), found {array.shape}")
    if not (np.isfinite(array).all() and (array >= 0).all() and (array.sum(axis=-1) > 0).all()):
        raise ValueError("weights must be finite, at least 0, and not all 0 for a resample")
    return array


def require_both_classes(y: FloatArray, weights: FloatArray) -> None:
    """Raise ValueError unless both classes carry weight in every resample."""
    if not ((weights @ y > 0).all() and (weights @ (1 - y) > 0).all()):
        raise ValueError("both classes are needed, found one class only")

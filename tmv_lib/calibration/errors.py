"""How far a probability is from the truth: calibration errors, their noise floor, and the reliability diagram.

Every function of `y_prob` serves both readings: pass `y_true, y_prob` for the calibration of the positive
class, or `*top_label(y_true, y_prob)` for that of the decision's own confidence."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.fft import dct, idct
from scipy.optimize import brentq

from tmv_lib.statistics.arrays import CELLS_AT_ONCE, FloatArray, IntArray, as_binary, as_finite, as_weights
from tmv_lib.statistics.tests import wilson_interval

SMOOTHING_CELLS = 2**14  # grid on [0, 1] of the smooth calibration error
LEVELS = 2**12  # more distinct probabilities than these are merged before labels are drawn for them
MANY, FEWER_LEVELS = 2**16, 2**10  # of more cases than the first, into these, for the noise floor
ROUNDING = 1e-12  # below this two errors of calibration are equal


class TopLabel(NamedTuple):
    """Whether the decision `p > 0.5` is right (n,) in {0, 1}, and its confidence max(p, 1 - p) (n,)."""

    correct: FloatArray
    confidence: FloatArray


class ReliabilityCurve(NamedTuple):
    """One entry a non-empty bin: mean probability, share of positives with Wilson's 95 % interval, cases."""

    confidence: FloatArray
    accuracy: FloatArray
    n: IntArray
    low: FloatArray
    high: FloatArray


class NoiseFloor(NamedTuple):
    """Mean and 95th percentile of the ECE under perfect calibration, and the draws behind them."""

    mean: float
    p95: float
    samples: FloatArray

    def p_value(self, observed: float) -> float:
        """Chance of an ECE at least as large as the observed one if calibration were perfect, in (0, 1]."""
        ties = self.samples >= observed - ROUNDING  # equal sums of other orders differ in the last digits
        return float((1 + ties.sum()) / (1 + self.samples.size))


class CalibrationTest(NamedTuple):
    """An ECE beside the mean and the 95th percentile of its noise floor, and the p-value of perfect calibration."""

    ece: float
    noise_floor: float
    noise_floor_p95: float
    p_value: float


def top_label(y_true: ArrayLike, y_prob: ArrayLike) -> TopLabel:
    """Turn positive-class probabilities into correctness and confidence of the decision `p > 0.5`.

    >>> correct, confidence = top_label([0, 1], [0.25, 0.375])
    >>> correct.tolist(), confidence.tolist()
    ([1.0, 0.0], [0.75, 0.625])
    """
    y, p = as_probabilities(y_true, y_prob)
    return TopLabel(((p > 0.5) == y).astype(float), np.maximum(p, 1 - p))


def reliability_curve(
    y_true: ArrayLike, y_prob: ArrayLike, *, n_bins: int = 15, strategy: str = "uniform"
) -> ReliabilityCurve:
    """Observed share of positives against mean probability in right-closed bins; the first bin also takes 0.

    strategy "uniform" cuts [0, 1] into equal widths, "quantile" cuts the cases into equal numbers (equal
    probabilities stay together). Empty bins are dropped. Raises ValueError for "quantile" with fewer cases
    than bins.
    """
    y, p = as_probabilities(y_true, y_prob)
    bins = _bin_of(p, n_bins=n_bins, strategy=strategy)
    _, bins, n = np.unique(bins, return_inverse=True, return_counts=True)
    positives = np.bincount(bins, weights=y)
    low, high = wilson_interval(positives, n)
    return ReliabilityCurve(np.bincount(bins, weights=p) / n, positives / n, n, low, high)


def expected_calibration_error(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    n_bins: int = 15,
    strategy: str = "uniform",
    weights: ArrayLike | None = None,
) -> Any:
    """ECE in [0, 1]: distance of observed share and mean probability, averaged over bins by their cases.

    Bins as in `reliability_curve`; those of "quantile" are cut on the cases as given, whatever the weights.
    Its bootstrap interval does not cover the true value: report `calibration_noise_floor` beside it, and
    resample it only for differences of two models. Returns a float, or an array (resamples,) for weights of
    shape (resamples, n).
    """
    y, p = as_probabilities(y_true, y_prob)
    w = as_weights(weights, n=y.size)
    # ECE = sum_b |sum_{i in b} w_i (y_i - p_i)| / sum_i w_i
    order, starts = _by_bin(p, n_bins=n_bins, strategy=strategy)
    gaps = np.add.reduceat((w * (y - p))[..., order], starts, axis=-1)
    return np.abs(gaps).sum(axis=-1) / w.sum(axis=-1)


def debiased_calibration_error(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    n_bins: int = 15,
    strategy: str = "uniform",
    weights: ArrayLike | None = None,
) -> Any:
    """Root of the debiased squared calibration error (Kumar, Liang & Ma 2019), in [0, 1].

    The variance of each bin's observed share is taken off, so that a perfect model has 0 in expectation
    before the floor at 0. Bins of one case have no variance and are left out; ValueError where no other bin
    exists. Bins, weights and return value as in `expected_calibration_error`.
    """
    y, p = as_probabilities(y_true, y_prob)
    w = as_weights(weights, n=y.size)
    order, starts = _by_bin(p, n_bins=n_bins, strategy=strategy)
    n, positives, gap = (np.add.reduceat(part[..., order], starts, axis=-1) for part in (w, w * y, w * (y - p)))
    usable = n >= 2
    if not usable.any(axis=-1).all():
        raise ValueError("the debiased error needs a bin with at least 2 cases, found none")
    # sum_b n_b / n [(ybar - pbar)^2 - ybar (1 - ybar) / (n_b - 1)], n_b ybar the positives
    n_usable = np.where(usable, n, 2)
    terms = (gap**2 - positives * (n - positives) / (n_usable - 1)) / n_usable
    squared = np.where(usable, terms, 0).sum(axis=-1) / w.sum(axis=-1)
    return np.sqrt(np.maximum(squared, 0))


def smooth_calibration_error(y_true: ArrayLike, y_prob: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Smooth ECE in [0, 1], free of bins (Blasiok & Nakkiran 2023, arXiv 2309.12236).

    smECE_s is the integral over t of |mean_i (y_i - p_i) K_s(t, p_i)|, K_s the Gaussian of width s reflected
    at 0 and 1; the value is the s at which smECE_s = s. Probabilities are rounded to a grid of 2**14 cells.
    Returns a float, or an array (resamples,) for weights (resamples, n).
    """
    y, p = as_probabilities(y_true, y_prob)
    w = as_weights(weights, n=y.size)
    cell = np.minimum((p * SMOOTHING_CELLS).astype(np.intp), SMOOTHING_CELLS - 1)
    frequency = np.pi * np.arange(SMOOTHING_CELLS)

    def fixed_point(row: FloatArray) -> float:
        spectrum = dct(np.bincount(cell, weights=row * (y - p), minlength=SMOOTHING_CELLS) / row.sum())

        # A reflected Gaussian multiplies the cosine of frequency pi k by exp(-(pi k s)^2 / 2): beyond k = 64 / s
        # nothing is left, and as many cells show all there is to see.
        def excess(s: float) -> float:
            seen = int(min(SMOOTHING_CELLS, 2 ** np.ceil(np.log2(64 / max(s, 1e-6)))))
            smoothed = idct(spectrum[:seen] * np.exp(-((frequency[:seen] * s) ** 2) / 2))
            return float(np.abs(smoothed).sum()) - s

        return brentq(excess, 0, 2, xtol=1e-9)

    return np.apply_along_axis(fixed_point, -1, w)[()]


def calibration_noise_floor(
    y_prob: ArrayLike,
    *,
    n_bins: int = 15,
    strategy: str = "uniform",
    n_draws: int = 1000,
    rng: np.random.Generator,
) -> NoiseFloor:
    """The ECE that a perfectly calibrated model with these very probabilities shows: draws y ~ Bernoulli(p).

    An observed ECE below p95 proves nothing; `p_value(observed)` of the result says how surprising it is. For
    the top-label ECE pass the confidence.
    """
    p = as_finite(y_prob, name="y_prob", low=0, high=1)
    require_draws(n_draws)
    bins = _bin_of(p, n_bins=n_bins, strategy=strategy)
    order, starts = by_level(p, at_most=LEVELS if p.size <= MANY else FEWER_LEVELS, bins=bins)
    n = np.diff(starts, append=p.size)
    level = np.add.reduceat(p[order], starts) / n
    first_of_bin = np.flatnonzero(np.diff(bins[order][starts], prepend=-1))
    samples = []
    batch = max(1, CELLS_AT_ONCE // n.size)
    for start in range(0, n_draws, batch):
        positives = rng.binomial(n, level, size=(min(batch, n_draws - start), n.size))
        gaps = np.add.reduceat(positives - n * level, first_of_bin, axis=-1)
        samples.append(np.abs(gaps).sum(axis=-1) / p.size)
    errors = np.concatenate(samples)
    return NoiseFloor(float(errors.mean()), float(np.quantile(errors, 0.95)), errors)


def calibration_test(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    n_bins: int = 15,
    strategy: str = "uniform",
    n_draws: int = 1000,
    rng: np.random.Generator,
) -> CalibrationTest:
    """The ECE of `expected_calibration_error` held against the noise floor of these very probabilities."""
    ece = float(expected_calibration_error(y_true, y_prob, n_bins=n_bins, strategy=strategy))
    floor = calibration_noise_floor(y_prob, n_bins=n_bins, strategy=strategy, n_draws=n_draws, rng=rng)
    return CalibrationTest(ece, floor.mean, floor.p95, floor.p_value(ece))


def as_probabilities(y_true: ArrayLike, y_prob: ArrayLike) -> tuple[FloatArray, FloatArray]:
    y = as_binary(y_true)
    return y, as_finite(y_prob, name="y_prob", n=y.size, low=0, high=1)


def _bin_of(p: FloatArray, *, n_bins: int, strategy: str) -> IntArray:
    """The bin 0 ... n_bins - 1 of each probability (n,), right-closed, the edges to the bit scikit-learn's."""
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, found {n_bins}")
    if strategy == "uniform":
        edges = np.linspace(0, 1, n_bins + 1)
    elif strategy == "quantile":
        if p.size < n_bins:
            raise ValueError(f"bins of equal mass need a case each, found {p.size} cases for {n_bins} bins")
        edges = np.percentile(p, 100 * np.linspace(0, 1, n_bins + 1))
    else:
        raise ValueError(f"strategy must be uniform or quantile, found {strategy}")
    return np.searchsorted(edges[1:-1], p, side="left")


def _by_bin(p: FloatArray, *, n_bins: int, strategy: str) -> tuple[IntArray, IntArray]:
    """An order of the cases that puts bins together, and where each non-empty bin starts in it."""
    bins = _bin_of(p, n_bins=n_bins, strategy=strategy)
    order = np.argsort(bins, kind="stable")
    return order, np.unique(bins[order], return_index=True)[1]


def by_level(p: FloatArray, *, at_most: int | None = None, bins: IntArray | None = None) -> tuple[IntArray, IntArray]:
    """An ascending order of probabilities (n,), and where each distinct one starts in it.

    More than `at_most` of these, where given, are merged within cells of width 1 / at_most, never across `bins` (n,).
    """
    order = np.argsort(p, kind="stable")
    level = p[order]
    starts = np.flatnonzero(np.diff(level, prepend=-1))
    if at_most is not None and starts.size > at_most:
        changes = np.diff(np.floor(level * at_most), prepend=-1)
        if bins is not None:
            changes += np.diff(bins[order], prepend=-1)
        starts = np.flatnonzero(changes)
    return order, starts


def require_draws(n_draws: int) -> None:
    if n_draws < 1:
        raise ValueError(f"n_draws must be at least 1, found {n_draws}")

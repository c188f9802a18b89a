"""Whether a probability means what it says, and calibrators that mend it.

Every function of `y_prob` serves both readings: pass `y_true, y_prob` for the calibration of the positive
class, or `*top_label(y_true, y_prob)` for that of the decision's own confidence.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.fft import dct, idct
from scipy.optimize import brentq, isotonic_regression
from scipy.special import expit, stdtrit
from scipy.special import logit as log_odds
from sklearn.isotonic import IsotonicRegression

from tmv_lib.files import whole
from tmv_lib.statistics import (
    CELLS_AT_ONCE,
    FloatArray,
    IntArray,
    as_binary,
    as_finite,
    as_weights,
    auroc,
    patient_folds,
    require_both_classes,
    wilson_interval,
)

SMOOTHING_CELLS = 2**14  # grid on [0, 1] of the smooth calibration error
MERGED_FROM, LOGIT_CELL = 2**16, 2.0**-11  # calibrators of more cases are fitted on cells of the logit
LEVELS = 2**12  # more distinct probabilities than these are merged before labels are drawn for them
TEMPERATURE_LOW, TEMPERATURE_HIGH = 0.01, 100.0
ROUNDING = 1e-12  # below this two errors of calibration are equal
PRIOR_SD = 0.5  # of a Normal prior about the identity on each parameter of `logistic` and `beta`
LEAST_SLOPE = 0.01  # of these two: both rise everywhere, whatever the cases say


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


class Corp(NamedTuple):
    """The Brier score as miscalibration - discrimination + uncertainty, each at least 0; one a row of weights."""

    miscalibration: Any
    discrimination: Any
    uncertainty: Any


class CorpCurve(NamedTuple):
    """One entry a distinct probability, ascending: the recalibrated one, cases, and the 95 % consistency band."""

    y_prob: FloatArray
    recalibrated: FloatArray
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


class CalibratorChoice(NamedTuple):
    """The chosen calibrator's name, and a row a calibrator that was tried, all figures of patients held out.

    name; nll in nats; excess: nll above that of `logistic`, and its standard_error over patients; auroc: mean over the
    folds that hold both classes, NaN without one; chosen.
    """

    name: str
    table: pd.DataFrame


class NestedChoice(NamedTuple):
    """Logits (n,) calibrated by a choice and a fit that saw other patients only, and the name chosen in each fold."""

    logit: FloatArray
    names: list[str]


class Ranking(NamedTuple):
    """AUROC, and the upper end of its 95 % interval: the truth lies above it once in 40."""

    auroc: float
    high: float


@dataclass(frozen=True)
class Calibrator:
    """A fitted map from logit to calibrated logit: a key of `CALIBRATORS` and its parameters, numbers or lists."""

    name: str
    parameters: dict[str, Any]

    def __call__(self, logit: ArrayLike) -> FloatArray:
        return CALIBRATORS[self.name].transform(as_finite(logit, name="logit"), **self.parameters)


def top_label(y_true: ArrayLike, y_prob: ArrayLike) -> TopLabel:
    """Turn positive-class probabilities into correctness and confidence of the decision `p > 0.5`.

    >>> correct, confidence = top_label([0, 1], [0.25, 0.375])
    >>> correct.tolist(), confidence.tolist()
    ([1.0, 0.0], [0.75, 0.625])
    """
    y, p = _cases(y_true, y_prob)
    return TopLabel(((p > 0.5) == y).astype(float), np.maximum(p, 1 - p))


def reliability_curve(
    y_true: ArrayLike, y_prob: ArrayLike, *, n_bins: int = 15, strategy: str = "uniform"
) -> ReliabilityCurve:
    """Observed share of positives against mean probability in right-closed bins; the first bin also takes 0.

    strategy "uniform" cuts [0, 1] into equal widths, "quantile" cuts the cases into equal numbers (equal
    probabilities stay together). Empty bins are dropped. Raises ValueError for "quantile" with fewer cases
    than bins.
    """
    y, p = _cases(y_true, y_prob)
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
    y, p = _cases(y_true, y_prob)
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
    y, p = _cases(y_true, y_prob)
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
    y, p = _cases(y_true, y_prob)
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


def corp_decomposition(y_true: ArrayLike, y_prob: ArrayLike, *, weights: ArrayLike | None = None) -> Corp:
    """Exact decomposition of the Brier score (CORP: Dimitriadis, Gneiting & Jordan 2021).

    With x the isotonic (PAV) recalibration of p: MCB = S(p) - S(x), DSC = S(ybar) - S(x), UNC = S(ybar), so
    that S(p) = MCB - DSC + UNC. One class only is allowed: UNC and DSC are then 0. Floats, or arrays
    (resamples,) for weights (resamples, n).
    """
    y, p = _cases(y_true, y_prob)
    w = as_weights(weights, n=y.size)
    order, starts = _by_level(p)
    n, positives = (np.add.reduceat(part[..., order], starts, axis=-1) for part in (w, w * y))
    total = w.sum(axis=-1)
    prevalence = positives.sum(axis=-1) / total

    def explained(k: tuple[int, ...]) -> float:
        drawn = n[k] > 0
        x = isotonic_regression(positives[k][drawn] / n[k][drawn], weights=n[k][drawn]).x
        # x averages y within each PAV block, so S(ybar) - S(x) = mean (x - ybar)^2
        return float(n[k][drawn] @ (x - prevalence[k]) ** 2 / total[k])

    discrimination = np.reshape([explained(k) for k in np.ndindex(total.shape)], total.shape)[()]
    uncertainty = prevalence * (1 - prevalence)
    miscalibration = w @ (p - y) ** 2 / total - uncertainty + discrimination
    return Corp(np.maximum(miscalibration, 0), discrimination, uncertainty)


def corp_curve(y_true: ArrayLike, y_prob: ArrayLike, *, n_draws: int = 1000, rng: np.random.Generator) -> CorpCurve:
    """Reliability without bins: the isotonic (PAV) recalibration of p, and where it would lie under calibration.

    The consistency band holds 95 % of the curves of labels drawn as y ~ Bernoulli(p), point by point (Dimitriadis,
    Gneiting & Jordan 2021): at a given probability, a curve outside speaks against calibration. More than 4,096
    distinct probabilities are merged within cells of width 1/4096, at their mean. One class only is allowed.
    """
    y, p = _cases(y_true, y_prob)
    _require_draws(n_draws)
    order, starts = _by_level(p, at_most=LEVELS)
    n = np.diff(starts, append=p.size)
    level, share = (np.add.reduceat(values[order], starts) / n for values in (p, y))
    drawn = rng.binomial(n, level, size=(n_draws, n.size)) / n
    recalibrated, *curves = (isotonic_regression(row, weights=n).x for row in (share, *drawn))
    return CorpCurve(level, recalibrated, n, *np.quantile(curves, [0.025, 0.975], axis=0))


def calibration_slope(y_true: ArrayLike, logit: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Slope b of logit P(y = 1) = a + b z by maximum likelihood (Cox 1958); 1 is perfect, below 1 overconfident.

    Returns a float, or (resamples,) for weights (resamples, n). Raises ValueError for one class only, a
    constant logit, and logits that separate the classes (the slope is then infinite).
    """
    y, z, w = _weighted_logits(y_true, logit, weights)

    def slope(row: FloatArray) -> float:
        drawn = row > 0
        negative, positive = z[drawn & (y == 0)], z[drawn & (y == 1)]
        if np.ptp(z[drawn]) == 0:
            raise ValueError("a calibration slope needs at least two different logits, found one")
        if negative.max() <= positive.min() or positive.max() <= negative.min():
            raise ValueError("the logits separate the classes: the calibration slope is infinite")
        scale = np.abs(z[drawn]).max()
        design = np.column_stack([np.ones(drawn.sum()), z[drawn] / scale])
        return float(_fit_logistic(design, y[drawn], row[drawn])[1] / scale)

    return np.apply_along_axis(slope, -1, w)[()]


def calibration_in_the_large(y_true: ArrayLike, logit: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
    """Intercept a of logit P(y = 1) = a + z, slope held at 1 (Van Calster et al. 2016); 0 is perfect.

    Above 0 the model promises too few positives. Returns a float, or (resamples,) for weights (resamples, n).
    Raises ValueError for one class only.
    """
    y, z, w = _weighted_logits(y_true, logit, weights)

    def intercept(row: FloatArray) -> float:
        # sum_i w_i (sigma(a + z_i) - y_i) = 0; each extreme logit, moved to the prevalence, brackets the root
        prevalence = log_odds(row @ y / row.sum())
        low, high = prevalence - z.max() - 1, prevalence - z.min() + 1
        # far logits leave a flat stretch between them, which can take more than the usual 100 steps
        return brentq(lambda a: row @ (expit(a + z) - y), low, high, maxiter=1000)

    return np.apply_along_axis(intercept, -1, w)[()]


def fit_temperature(y_true: ArrayLike, logit: ArrayLike) -> float:
    """Temperature T that minimises the negative log-likelihood of logit / T (Guo et al. 2017).

    T lies in [0.01, 100]. It is 0.01 where the sign of the logit separates the classes (any sharper is
    better), and 100 where the logit does not help (any flatter is better). Raises ValueError for one class
    only, or zero logits.
    """
    y, z, w = _weighted_logits(y_true, logit, None)
    if not z.any():
        raise ValueError("logit must not be 0 everywhere: every temperature fits alike")
    return _best_temperature(y, z, w)


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
    _require_draws(n_draws)
    bins = _bin_of(p, n_bins=n_bins, strategy=strategy)
    order, starts = _by_level(p, at_most=LEVELS, bins=bins)
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


def at_prevalence(logit: ArrayLike, *, source: float, target: float) -> FloatArray:
    """Logits (n,) for a place where `target` of the cases are positive and not `source`, both in (0, 1).

    z + log(target / (1 - target)) - log(source / (1 - source)), Bayes' rule (Saerens, Latinne & Decaestecker 2002).
    It holds where the prevalence alone differs: positives look like positives and negatives like negatives in both
    places (label shift).

    >>> at_prevalence([0.0], source=0.5, target=0.2).round(4).tolist()  # log(0.2 / 0.8)
    [-1.3863]
    """
    z = as_finite(logit, name="logit")
    return z + float(log_odds(_proportion("target", target)) - log_odds(_proportion("source", source)))


def prevalence_weights(y_true: ArrayLike, *, target: float, weights: ArrayLike | None = None) -> FloatArray:
    """Weights under which `target` in (0, 1) of the cases y_true (n,) are positive, in each row; sums are kept.

    `weights` (n,) or (resamples, n) are what is reweighted, ones where none are given. Raises ValueError where a
    class carries no weight.
    """
    y = as_binary(y_true)
    w = as_weights(weights, n=y.size)
    require_both_classes(y, w)
    # pi / (w+ / w) for positives, (1 - pi) / (w- / w) for negatives
    share = ((w @ y) / w.sum(axis=-1))[..., None]
    return w * np.where(y == 1, _proportion("target", target) / share, (1 - target) / (1 - share))


def ranking(y_true: ArrayLike, logit: ArrayLike, *, groups: ArrayLike) -> Ranking:
    """AUROC of logit (n,) with a one-sided 97.5 % upper bound that counts patients, groups (n,), and not images.

    The variance of DeLong et al. (1988), summed by patient (Obuchowski 1997), with Student's t of one degree of freedom
    less than the rarer class has patients: ours, as a Normal bound is false for a handful of positives. Where a class
    has one patient there is no bound, and `high` is 1. A bound below 0.5 says that the scores rank the wrong way.
    """
    y, z, _ = _weighted_logits(y_true, logit, None)
    patient = _patient(groups, n=y.size)
    found = float(auroc(y, z))
    deviation, fewest = np.zeros(patient.max() + 1), y.size
    for label in (0, 1):
        own, other = z[y == label], np.sort(z[y != label])
        # share of the other class on the right side of each case, and what it adds to the AUROC's deviation
        below = (np.searchsorted(other, own, "left") + np.searchsorted(other, own, "right")) / (2 * other.size)
        share = below if label else 1 - below
        n_patients = np.unique(patient[y == label]).size
        fewest = min(fewest, n_patients)
        spread = np.sqrt(n_patients / max(n_patients - 1, 1)) / own.size
        deviation += np.bincount(patient[y == label], weights=spread * (share - found), minlength=deviation.size)
    if fewest < 2:
        return Ranking(found, 1.0)
    high = found + stdtrit(fewest - 1, 0.975) * np.sqrt((deviation**2).sum())
    return Ranking(found, float(min(high, 1.0)))


def fit_calibrator(name: str, y_true: ArrayLike, logit: ArrayLike, *, groups: ArrayLike) -> Calibrator:
    """Fit one of `CALIBRATORS` to y_true (n,) in {0, 1} and logit z (n,) of the patients groups (n,).

    identity: z. logistic: a + b z (Cox 1958, Platt 1999). beta: a log p - b log(1 - p) + c (Kull et al. 2017).
    isotonic: PAV of y on z, linear between its knots, clipped to [1/(G+1), G/(G+1)] for G patients.

    logistic and beta maximise sum_i G/n log P(y_i) - |theta - identity|^2 / (2 sd^2), sd = 0.5: penalised likelihood
    with a Normal prior about leaving the logit alone. G/n weighs the n images so that they count as much as their G
    patients, as images of one patient tell partly the same. (Weighing by 1/m for m images a patient does a little
    better where labels belong to patients, but it calibrates for the mean patient: where patients with many images are
    the sicker ones, as in NIH ChestX-ray14, it promises a tenth too few positives.) Slopes are at least 0.01: no
    calibrator turns a ranking round. Isotonic merges levels, the others keep all. More than 65,536 cases are merged in
    cells of 1/2048 of the logit, at their mean. Raises ValueError for an unknown name or one class only.
    """
    if name not in CALIBRATORS:
        raise ValueError(f"a calibrator must be one of {', '.join(CALIBRATORS)}, found {name}")
    y, z, _ = _weighted_logits(y_true, logit, None)
    n_patients = _patient(groups, n=y.size).max() + 1
    share, level, n = _merged(y, z)
    return Calibrator(name, CALIBRATORS[name].fit(share, level, n * n_patients / y.size))


def write_calibrators(path: str | Path, calibrators: Mapping[str, Calibrator]) -> None:
    """Write the calibrator of each member as JSON, every number in full."""
    table = {member: {"name": one.name, "parameters": one.parameters} for member, one in calibrators.items()}
    with whole(path) as temporary:
        temporary.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def read_calibrators(path: str | Path) -> dict[str, Calibrator]:
    """Read what `write_calibrators` wrote; they answer to the bit as those written did.

    Raises ValueError naming the file where it is not there or holds something else.
    """
    try:
        found = {member: Calibrator(**one) for member, one in json.loads(Path(path).read_text("utf-8")).items()}
        for calibrator in found.values():
            calibrator([0.0])
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; `dvc repro calibration` makes it") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: no calibrators of this version ({error}); `dvc repro calibration` makes it"
        ) from None
    return found


def choose_calibrator(
    y_true: ArrayLike, logit: ArrayLike, *, groups: ArrayLike, n_folds: int, rng: np.random.Generator
) -> CalibratorChoice:
    """`logistic`, or a richer calibrator that enough patients carry and that patients held out prefer.

    Tried is what the patients of the rarer class suffice for (`Kind.fewest`), and identity for comparison. Taken is the
    calibrator of least negative log-likelihood in patient-grouped, class-stratified cross-validation among those that
    beat `logistic` by more than one standard error over patients, and whose AUROC within the folds does not fall by
    more than its standard error over folds. Raises ValueError where a training part lacks a class.
    """
    y, z, _ = _weighted_logits(y_true, logit, None)
    patient = _patient(groups, n=y.size)
    carried = min(np.unique(patient[y == label]).size for label in (0, 1))
    names = [name for name, kind in CALIBRATORS.items() if kind.fewest <= carried]
    fold = patient_folds(y, patient, n_folds=n_folds, rng=rng)
    logits = [_out_of_fold(name, y, z, patient, fold) for name in names]
    loss = np.logaddexp(0, (1 - 2 * y) * np.array(logits))
    excess = loss - loss[names.index("logistic")]
    error = np.array([_clustered_error(row, patient) for row in excess])
    both = [here for k in range(n_folds) if 0 < y[here := fold == k].mean() < 1]
    ranked = np.array([[auroc(y[here], row[here]) for here in both] or [np.nan] for row in logits])
    fall = ranked[names.index("identity")] - ranked
    fall_error = fall.std(axis=1, ddof=1) / np.sqrt(len(both)) if len(both) > 1 else np.zeros(len(names))
    better = (excess.mean(axis=1) < -error) & (fall.mean(axis=1) <= fall_error) & (np.array(names) != "identity")
    chosen = int(np.where(better, loss.mean(axis=1), np.inf).argmin()) if better.any() else names.index("logistic")
    table = pd.DataFrame({"name": names, "nll": loss.mean(axis=1), "excess": excess.mean(axis=1)})
    table = table.assign(standard_error=error, auroc=ranked.mean(axis=1), chosen=table.index == chosen)
    return CalibratorChoice(names[chosen], table)


def nested_choice(
    y_true: ArrayLike, logit: ArrayLike, *, groups: ArrayLike, n_folds: int, rng: np.random.Generator
) -> NestedChoice:
    """What `choose_calibrator` and a fit of its choice do to patients that neither has seen.

    An outer loop of patient-grouped folds holds the choice, with its own cross-validation, inside. Raises ValueError
    where a training part lacks a class.
    """
    y, z, _ = _weighted_logits(y_true, logit, None)
    patient = _patient(groups, n=y.size)
    fold = patient_folds(y, patient, n_folds=n_folds, rng=rng)
    calibrated, names = np.empty(y.size), []
    for k in range(n_folds):
        held_out, rest = fold == k, fold != k
        names.append(choose_calibrator(y[rest], z[rest], groups=patient[rest], n_folds=n_folds, rng=rng).name)
        calibrated[held_out] = fit_calibrator(names[-1], y[rest], z[rest], groups=patient[rest])(z[held_out])
    return NestedChoice(calibrated, names)


def cross_fitted(
    name: str, y_true: ArrayLike, logit: ArrayLike, *, groups: ArrayLike, n_folds: int, rng: np.random.Generator
) -> FloatArray:
    """Calibrated logits (n,) of the very cases a calibrator is fitted on, each from the other patients' folds."""
    y, z, _ = _weighted_logits(y_true, logit, None)
    patient = _patient(groups, n=y.size)
    return _out_of_fold(name, y, z, patient, patient_folds(y, patient, n_folds=n_folds, rng=rng))


def _out_of_fold(name: str, y: FloatArray, z: FloatArray, patient: IntArray, fold: IntArray) -> FloatArray:
    calibrated = np.empty(y.size)
    for k in np.unique(fold):
        held_out, rest = fold == k, fold != k
        calibrated[held_out] = fit_calibrator(name, y[rest], z[rest], groups=patient[rest])(z[held_out])
    return calibrated


def _patient(groups: ArrayLike, *, n: int) -> IntArray:
    """The patient of each case (n,), 0, 1, ..., whatever the order of the rows."""
    patient, _ = pd.factorize(np.asarray(groups), sort=True)
    if patient.size != n or (patient < 0).any():
        raise ValueError(f"groups must name one patient a case ({n}), found {patient.size} or a missing name")
    return patient


Parameters = dict[str, Any]


class Kind(NamedTuple):
    """How a calibrator is fitted, what it does to logits, and how many patients of the rarer class it needs.

    fit takes the share of positives y in [0, 1] at a logit z, and the weight w of that level, all (n,).
    """

    fit: Callable[[FloatArray, FloatArray, FloatArray], Parameters]
    transform: Callable[..., FloatArray]
    fewest: int


def _fit_line(y: FloatArray, z: FloatArray, w: FloatArray) -> Parameters:
    slope, intercept = _fit_rising(np.column_stack([z, np.ones(z.size)]), y, w, identity=[1.0, 0.0])
    return {"intercept": intercept, "slope": slope}


def _line(logit: FloatArray, intercept: float, slope: float) -> FloatArray:
    return intercept + slope * logit


def _fit_beta(y: FloatArray, z: FloatArray, w: FloatArray) -> Parameters:
    # log p, -log(1 - p), 1
    design = np.column_stack([-np.logaddexp(0, -z), np.logaddexp(0, z), np.ones(z.size)])
    return dict(zip("abc", _fit_rising(design, y, w, identity=[1.0, 1.0, 0.0]), strict=True))


def _beta(logit: FloatArray, a: float, b: float, c: float) -> FloatArray:
    return b * np.logaddexp(0, logit) - a * np.logaddexp(0, -logit) + c


def _fit_steps(y: FloatArray, z: FloatArray, w: FloatArray) -> Parameters:
    n = w.sum()
    steps = IsotonicRegression(y_min=1 / (n + 1), y_max=n / (n + 1), out_of_bounds="clip").fit(z, y, w)
    return {"logit": steps.X_thresholds_.tolist(), "y_prob": steps.y_thresholds_.tolist()}


def _steps(at: FloatArray, logit: list[float], y_prob: list[float]) -> FloatArray:
    return log_odds(np.interp(at, logit, y_prob))


# simplest first
CALIBRATORS: dict[str, Kind] = {
    "identity": Kind(lambda y, z, w: {}, lambda logit: logit, 0),
    "logistic": Kind(_fit_line, _line, 0),
    "beta": Kind(_fit_beta, _beta, 200),
    "isotonic": Kind(_fit_steps, _steps, 1000),
}


def _fit_rising(design: FloatArray, y: FloatArray, w: FloatArray, *, identity: list[float]) -> list[float]:
    """Penalised coefficients of a logistic regression, the last one's column being 1 and the others >= LEAST_SLOPE."""
    coefficients = np.array(identity)
    free = np.ones(coefficients.size, dtype=bool)
    while True:
        coefficients[free] = _fit_logistic(
            design[:, free],
            y,
            w,
            ridge=1 / PRIOR_SD**2,
            centre=np.array(identity)[free],
            offset=design[:, ~free] @ coefficients[~free],
        )
        slopes = np.where(free[:-1], coefficients[:-1], np.inf)
        if slopes.min() >= LEAST_SLOPE:
            return coefficients.tolist()
        lowest = slopes.argmin()  # it stays at the bound, and the others are fitted again
        coefficients[lowest], free[lowest] = LEAST_SLOPE, False


def _merged(y: FloatArray, z: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Share of positives, logit and number of cases, one a case; of more than MERGED_FROM cases one a cell."""
    if y.size <= MERGED_FROM:
        return y, z, np.ones(y.size)
    cell, _ = pd.factorize(np.floor(z / LOGIT_CELL))
    n = np.bincount(cell).astype(float)
    return np.bincount(cell, weights=y) / n, np.bincount(cell, weights=z) / n, n


def _log_loss(y: FloatArray, z: FloatArray, w: FloatArray) -> float:
    """Negative log-likelihood in nats of logits z for shares y of w cases, summed."""
    return float(w @ (np.logaddexp(0, z) - y * z))


def _best_temperature(y: FloatArray, z: FloatArray, w: FloatArray) -> float:
    # d NLL / d (1/T) = sum_i w_i z_i (sigma(z_i / T) - y_i), which falls as T grows
    def gradient(log_temperature: float) -> float:
        return float((w * z) @ (expit(z * np.exp(-log_temperature)) - y))

    low, high = np.log(TEMPERATURE_LOW), np.log(TEMPERATURE_HIGH)
    if gradient(low) <= 0:
        return TEMPERATURE_LOW
    if gradient(high) >= 0:
        return TEMPERATURE_HIGH
    return float(np.exp(brentq(gradient, low, high, xtol=1e-12)))


def _fit_logistic(
    design: FloatArray,
    y: FloatArray,
    w: FloatArray,
    *,
    ridge: float = 0.0,
    centre: FloatArray | float = 0.0,
    offset: FloatArray | float = 0.0,
) -> FloatArray:
    """Coefficients of a logistic regression by damped Newton: a step is halved until the loss falls."""
    beta = np.zeros(design.shape[1])

    # L(beta) = sum_i w_i (log(1 + exp(eta_i)) - y_i eta_i) + ridge / 2 |beta - centre|^2, eta = offset + x beta
    def loss(beta: FloatArray) -> float:
        away = beta - centre
        return _log_loss(y, offset + design @ beta, w) + float(ridge / 2 * away @ away)

    least = loss(beta)
    for _ in range(200):
        p = expit(offset + design @ beta)
        gradient = design.T @ (w * (p - y)) + ridge * (beta - centre)
        hessian = (design.T * (w * p * (1 - p))) @ design + ridge * np.eye(beta.size)
        step = np.linalg.solve(hessian, gradient)
        while (reached := loss(beta - step)) > least and np.abs(step).max() > 1e-12:
            step /= 2
        beta, least = beta - step, reached
        if np.abs(step).max() <= 1e-10 * (1 + np.abs(beta).max()):
            return beta
    raise ValueError("the logistic fit did not converge: the logits all but separate the classes")


def _clustered_error(values: FloatArray, patient: IntArray) -> float:
    """Standard error of the mean of values (n,), patients being independent and not their images."""
    # sqrt(G / (G - 1) sum_g (sum_{i in g} (v_i - vbar))^2) / n
    totals = np.bincount(patient, weights=values - values.mean())
    return float(np.sqrt(totals.size / (totals.size - 1) * (totals**2).sum()) / values.size)


def _cases(y_true: ArrayLike, y_prob: ArrayLike) -> tuple[FloatArray, FloatArray]:
    y = as_binary(y_true)
    return y, as_finite(y_prob, name="y_prob", n=y.size, low=0, high=1)


def _weighted_logits(
    y_true: ArrayLike, logit: ArrayLike, weights: ArrayLike | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    y = as_binary(y_true)
    z = as_finite(logit, name="logit", n=y.size)
    w = as_weights(weights, n=y.size)
    require_both_classes(y, w)
    return y, z, w


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


def _by_level(p: FloatArray, *, at_most: int | None = None, bins: IntArray | None = None) -> tuple[IntArray, IntArray]:
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


def _require_draws(n_draws: int) -> None:
    if n_draws < 1:
        raise ValueError(f"n_draws must be at least 1, found {n_draws}")


def _proportion(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie in (0, 1), found {value}")
    return value


def decision_boundary(logit: ArrayLike, calibrated: ArrayLike) -> float:
    """The raw logit above which a calibrated probability exceeds one half, read off cases (n,) that have both.

    Halfway between the two raw logits that enclose it; infinite where all cases lie on one side. Lets the network
    itself say what the calibrated model would decide. Raises ValueError where no threshold can.

    >>> decision_boundary([-1.0, 0.5, 2.0], [-2.0, -0.5, 1.0])
    1.25
    """
    z = as_finite(logit, name="logit")
    positive = as_finite(calibrated, name="calibrated", n=z.size) > 0
    if positive.all() or not positive.any():
        return -np.inf if positive.all() else np.inf
    boundary = float((z[~positive].max() + z[positive].min()) / 2)
    if ((z > boundary) != positive).any():
        raise ValueError(
            "the calibrated decision is no threshold on the logit: does the calibrator reverse the ranking?"
        )
    return boundary

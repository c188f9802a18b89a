"""Intervals that resample patients, and folds that keep a patient together."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from tmv_lib.statistics.arrays import CELLS_AT_ONCE, FloatArray, IntArray, as_binary

WHOLE = 1000  # patients up to which each resample draws from all of them; of more, little bootstraps are drawn
SUBSETS, LITTLE = 20, 600  # little bootstraps of one figure, and patients of each at most
FEW = 10  # different values of an array that make kinds of patients
ROUNDING = 1e-12  # closer than this two figures are equal: sums in another order differ in the last digits


def generator(seed: int, *names: str) -> np.random.Generator:
    """The generator of what bears these names: it hangs on them and the seed alone, not on what else is drawn.

    >>> bool(generator(0, "band", "net").random() == generator(0, "band", "net").random())
    True
    """
    return np.random.default_rng([seed, *"/".join(names).encode()])


class Bootstrap(NamedTuple):
    """The 95 % percentile interval and the (n_resamples,) figures that it was read from."""

    low: float
    high: float
    samples: FloatArray

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided p-value of the hypothesis that the figure is `null`, in [2 / (B + 1), 1] for B resamples.

        p = min(1, 2 (1 + min(#{samples <= null}, #{samples >= null})) / (1 + B)): twice the smaller tail, a resample
        equal to `null` counting on both sides. It turns the percentile interval round (p <= 0.05 about where that
        leaves `null` out) and is as right as the interval is: where few patients tell two models apart, too small,
        and without meaning for a figure that is biased in resamples (ECE).
        """
        beyond = self.samples - null
        tail = min((beyond <= ROUNDING).sum(), (beyond >= -ROUNDING).sum())
        return float(min(1.0, 2 * (1 + tail) / (1 + self.samples.size)))


def bootstrap(
    metric: Callable[..., Any],
    *arrays: ArrayLike,
    groups: ArrayLike,
    n_resamples: int,
    rng: np.random.Generator,
    stratify: ArrayLike | None = None,
) -> Bootstrap:
    """95 % percentile interval of a metric, resampling patients with replacement.

    metric is called as metric(*arrays, weights=w) with w (batch, n), the number of times each case was drawn,
    and returns (batch,). groups (n,) names the patient of each case; rows of one patient are drawn together.
    With stratify (n,), usually y_true, patients of one class are resampled within that class, and patients
    with both form a stratum of their own, so that every resample holds both classes. A metric that returns a
    difference of two models gives the paired interval. Raises ValueError for fewer than two patients.

    Of more than 1,000 patients the time of a resample must not grow with them: see `_little_bootstraps`, whose interval
    is as wide but for a tenth or so (`tests/test_large_tables.py` holds it to 15 %).
    """
    patient, stratum = patient_strata(groups, stratify)
    if stratum.size < 2:
        raise ValueError(f"a bootstrap needs at least 2 patients, found {stratum.size}")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, found {n_resamples}")
    if any(np.shape(array)[:1] != patient.shape for array in arrays):
        raise ValueError(f"arrays and groups must have one row a case ({patient.size})")

    if stratum.size > WHOLE:
        figures = _little_bootstraps(metric, [np.asarray(a) for a in arrays], patient, stratum, n_resamples, rng)
        low, high = np.quantile(figures, [0.025, 0.975])
        return Bootstrap(float(low), float(high), figures)
    strata = [np.flatnonzero(stratum == s) for s in np.unique(stratum)]
    batch = max(1, CELLS_AT_ONCE // patient.size)
    samples = []
    for start in range(0, n_resamples, batch):
        counts = np.zeros((min(batch, n_resamples - start), stratum.size))
        for members in strata:
            drawn = rng.integers(members.size, size=(len(counts), members.size))
            drawn += members.size * np.arange(len(counts))[:, None]
            counts[:, members] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        figures = np.asarray(metric(*arrays, weights=counts[:, patient]), dtype=float)
        if figures.shape != (len(counts),):
            raise ValueError(f"metric must return one figure a resample ({len(counts)},), found {figures.shape}")
        samples.append(figures)
    figures = np.concatenate(samples)
    low, high = np.quantile(figures, [0.025, 0.975])
    return Bootstrap(float(low), float(high), figures)


def _little_bootstraps(
    metric: Callable[..., Any],
    arrays: list[np.ndarray],
    patient: IntArray,
    stratum: IntArray,
    n_resamples: int,
    rng: np.random.Generator,
) -> FloatArray:
    """Figures (n_resamples,) of as many patients as there are, by the bag of little bootstraps (Kleiner et al. 2014).

    Each of 20 subsets of at most 600 patients stands for all, and what its resamples differ from its own figure by is
    added to the figure of all cases. Departing from the paper, a subset holds as many patients of each kind, or all of
    a rare one, since a share of rare errors must not hang on how many of them a subset happens to hold; and resamples
    are those of the Bayesian bootstrap (Rubin 1981), in which the weight of a patient that stands for r of its kind is
    Gamma(r), scaled to the patients of the stratum.
    """
    value = float(metric(*arrays))
    kind = _kinds(arrays, patient, stratum)
    order = np.argsort(patient, kind="stable")
    size = np.bincount(patient)
    first = np.cumsum(size) - size
    of_kind = sorted((np.flatnonzero(kind == k) for k in np.unique(kind)), key=len)
    samples, reached = [], []
    for share in np.array_split(np.arange(n_resamples), min(SUBSETS, n_resamples)):
        chosen, stands_for, left = [], [], LITTLE
        for k, members in enumerate(of_kind):
            taken = rng.choice(members, min(len(members), left // (len(of_kind) - k)), replace=False)
            chosen.append(taken)
            stands_for.append(np.full(len(taken), len(members) / len(taken)))
            left -= len(taken)
        who, times = np.concatenate(chosen), np.concatenate(stands_for)
        which = np.repeat(np.arange(len(who)), size[who])
        rows = order[first[who][which] + np.arange(len(which)) - (np.cumsum(size[who]) - size[who])[which]]
        counts = np.vstack([times, rng.standard_gamma(times, size=(len(share), len(times)))])
        for s in np.unique(stratum[who]):
            here = stratum[who] == s
            counts[:, here] *= (stratum == s).sum() / counts[:, here].sum(axis=1, keepdims=True)
        own, batch = [array[rows] for array in arrays], max(1, CELLS_AT_ONCE // len(rows))
        parts = (counts[start : start + batch, which] for start in range(0, len(counts), batch))
        figures = np.concatenate([np.asarray(metric(*own, weights=part), dtype=float) for part in parts])
        samples.append(value + figures[1:] - figures[0])
        reached += [figures.min(), figures.max()]
    moved = np.concatenate(samples)
    return np.clip(moved, 0, 1) if min(reached) >= 0 and max(reached) <= 1 else moved  # a share stays one


def _kinds(arrays: list[np.ndarray], patient: IntArray, stratum: IntArray) -> IntArray:
    """The kind of each patient: its stratum and its rarest case, by the arrays that have few different values."""
    case = np.zeros(patient.size, dtype=np.intp)
    for array in arrays:
        code, values = pd.factorize(array) if array.ndim == 1 else (case, ())
        if 1 < len(values) <= FEW:
            case = pd.factorize(case * FEW + code)[0]
    rank = np.argsort(np.argsort(np.bincount(case), kind="stable"))
    rarest = np.full(stratum.size, len(rank))
    np.minimum.at(rarest, patient, np.minimum(rank, FEW)[case])
    return (stratum + 1) * (FEW + 1) + rarest


def clustered_standard_error(values: ArrayLike, groups: ArrayLike) -> float:
    """Standard error of the mean of values (n,), patients being independent and not their images; groups (n,).

    sqrt(G / (G - 1) sum_g (sum_{i in g} (v_i - vbar))^2) / n for G patients.
    """
    v, (patient, names) = np.asarray(values, dtype=float), pd.factorize(np.asarray(groups))
    totals = np.bincount(patient, weights=v - v.mean())
    return float(np.sqrt(len(names) / max(len(names) - 1, 1) * (totals**2).sum()) / v.size)


def patient_folds(y_true: ArrayLike, groups: ArrayLike, *, n_folds: int, rng: np.random.Generator) -> IntArray:
    """A fold in 0 ... n_folds - 1 for each case (n,): a patient lies in one fold, classes are spread evenly.

    Patients are dealt out in random order, first those of one class, then of the other, then the mixed ones,
    so that folds differ by at most one patient. Raises ValueError for fewer patients than folds, or n_folds <
    2.
    """
    patient, stratum = patient_strata(groups, as_binary(y_true))
    if not 2 <= n_folds <= stratum.size:
        raise ValueError(f"n_folds must lie between 2 and the number of patients ({stratum.size}), found {n_folds}")
    shuffled = rng.permutation(stratum.size)
    dealt = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    fold = np.empty(stratum.size, dtype=np.intp)
    fold[dealt] = np.arange(stratum.size) % n_folds
    return fold[patient]


def patient_strata(groups: ArrayLike, stratify: ArrayLike | None) -> tuple[IntArray, IntArray]:
    """The patient of each case (n,) and the stratum of each patient: its class, or -1 for more than one class."""
    patient, n_patients = _numbered(np.asarray(groups))
    if patient.size == 0 or (patient < 0).any():
        raise ValueError("groups must name the patient of every case, found none or a missing name")
    if stratify is None:
        return patient, np.zeros(n_patients, dtype=np.intp)
    label, _ = pd.factorize(np.asarray(stratify), sort=True)
    if label.size != patient.size:
        raise ValueError(f"groups must name one patient a case ({label.size}), found {patient.size}")
    lowest, highest = np.full(n_patients, label.size), np.full(n_patients, -1)
    np.minimum.at(lowest, patient, label)
    np.maximum.at(highest, patient, label)
    return patient, np.where(lowest == highest, lowest, -1)


def _numbered(groups: np.ndarray) -> tuple[IntArray, int]:
    """Patients numbered from 0 in the order of their names, -1 for a missing one, and how many there are."""
    if np.issubdtype(groups.dtype, np.integer) and groups.size and groups.min() >= 0 and groups.max() < 4 * groups.size:
        place = np.cumsum(np.bincount(groups) > 0)  # a million whole numbers need no sorting
        return place[groups] - 1, int(place[-1])
    patient, names = pd.factorize(groups, sort=True)
    return patient, len(names)

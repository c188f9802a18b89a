"""A figure as a value: with its interval and p-value over resampled patients, or absent with the reason."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from tmv_lib.statistics.classification import accuracy, negative_predictive_value, precision, sensitivity, specificity
from tmv_lib.statistics.ranking import auroc
from tmv_lib.statistics.resampling import bootstrap, generator
from tmv_lib.statistics.tests import holm_distinct, wilson_interval

MOST_POINTS, POINTS = 5000, 2000  # of a curve, which no screen shows more of


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval, and p-values where it was tested; or the reason why it, or its interval, is absent.

    value is None exactly where `absent` says why. p_value_holm: adjusted for the tests of its family (`adjust`).
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    p_value_holm: float | None = None
    absent: str | None = None
    interval_absent: str | None = None

    @property
    def ends(self) -> tuple[float, float, float]:
        """Value and both ends. Raises ValueError where one of them is absent."""
        if self.value is None or self.low is None or self.high is None:
            raise ValueError(f"no interval: {self.absent or self.interval_absent}")
        return self.value, self.low, self.high


@dataclass(frozen=True)
class Resampler:
    """Whose cases a figure rests on, and how these patients are resampled for its interval.

    groups: the patient of each case, (n,), kept as whole numbers in the order of the names, which are sorted once.
    n_resamples: at least 100. Every figure draws anew from the seed: it moves with no other, and figures of the same
    cases, and their difference, rest on the same resamples.
    """

    groups: np.ndarray
    n_resamples: int
    seed: int

    def __post_init__(self) -> None:
        if not np.issubdtype(np.asarray(self.groups).dtype, np.integer):
            patient, _ = pd.factorize(np.asarray(self.groups), sort=True)
            if (patient >= 0).all():  # a missing name is told where it is used
                object.__setattr__(self, "groups", patient)

    def among(self, here: ArrayLike) -> "Resampler":
        """The same of some of the cases, a boolean (n,) or row numbers."""
        return replace(self, groups=np.asarray(self.groups)[np.asarray(here)])

    def estimate(
        self,
        metric: Callable[..., Any],
        *arrays: Any,
        stratify: ArrayLike | None = None,
        null: float | None = None,
        interval: bool = True,
    ) -> Estimate:
        """A metric of arrays (n, ...) with its 95 % interval over resampled patients.

        stratify (n,): patients are resampled within its values (see `bootstrap`). Stratify by class only what needs
        both classes: a calibration figure also varies with the number of positives. null: the value, 0 for a
        difference, that `p_value` tests. interval=False leaves out an interval that does not cover what it promises.

        What cannot be computed, of all cases or in a resample, is absent with the reason in words. A proportion of 0
        or 1 is the same in every resample; it gets Wilson's interval for as many trials as there are patients (for an
        AUROC, of the rarer class), and a difference of proportions of which no patient knows Wilson's upper end to
        both sides.
        """
        try:
            with np.errstate(divide="ignore", invalid="ignore"):
                value = float(metric(*arrays))
                rng = generator(self.seed, "resamples")
                options: dict[str, Any] = {"groups": self.groups, "n_resamples": self.n_resamples, "rng": rng}
                resampled = bootstrap(metric, *arrays, stratify=stratify, **options)
        except ValueError as error:
            return Estimate(absent=str(error))
        low, high = resampled.low, resampled.high
        if not np.isfinite([value, low, high]).all():
            return Estimate(absent="not defined in every resample of the patients: too few cases of a kind")
        if low == high and value in (0, 1) and (trials := _trials(metric, *arrays, groups=np.asarray(self.groups))):
            low, high = (float(end) for end in wilson_interval(value * trials, trials))
            low = -high if _differs(metric) else low
        p_value = None if null is None else resampled.p_value(null)
        return Estimate(value, low, high, p_value) if interval else Estimate(value, p_value=p_value)

    def by_class(self, y_true: np.ndarray, y_pred: np.ndarray, *, prefix: str = "") -> dict[str, Estimate]:
        """Sensitivity and specificity over the patients of each class, precision and negative predictive value over
        those of each decision; y_true and y_pred (n,) of 0 and 1.
        """
        return {
            f"{prefix}{metric.__name__}": self.among(here).estimate(metric, y_true[here], y_pred[here])
            for metric, here in (
                (sensitivity, y_true == 1),
                (specificity, y_true == 0),
                (precision, y_pred == 1),
                (negative_predictive_value, y_pred == 0),
            )
        }

    def counts(self, y_true: np.ndarray) -> dict[str, int]:
        """How many images, positives and patients figures of these cases rest on."""
        return {"n": len(y_true), "n_positive": int(np.sum(y_true)), "n_patients": len(np.unique(self.groups))}


def _differs(metric: Callable[..., Any]) -> bool:
    return isinstance(metric, partial) and metric.func is difference


def _trials(metric: Callable[..., Any], *arrays: Any, groups: np.ndarray) -> int:
    """The patients of whom a proportion, or a difference of two, is the share; 0 for what is no proportion."""
    if metric is auroc:
        return min(len(np.unique(groups[np.asarray(arrays[0]) == label])) for label in (0, 1))
    of = metric.args[0] if isinstance(metric, partial) and _differs(metric) else metric
    proportions = (mean, accuracy, sensitivity, specificity, precision, negative_predictive_value)
    return len(np.unique(groups)) if of in proportions else 0


def adjust(*figures: dict[str, Any], distinct: bool = False) -> None:
    """Add Holm's adjusted p-value to every tested figure in these nested dictionaries: all are one family of tests.

    Tested are each `Estimate` with a p-value, and each dictionary with a key `p_value`, which gets `p_value_holm`. A
    test counts once, however often it stands there: what bears one name and agrees to the last digit in value,
    interval and p-value is one test, of logits, say, that a calibrator or a decision left as they were. distinct: no
    two are one, as two columns that differ as much as they can have equal figures.
    """
    tests = [test for found in figures for test in _tests(found)]
    if tests:
        same = range(len(tests)) if distinct else [same for _, _, same, _ in tests]
        adjusted = holm_distinct([p_value for *_, p_value in tests], list(same))
        for (entry, name, *_), p_value in zip(tests, adjusted.tolist(), strict=True):
            if isinstance(entry[name], Estimate):
                entry[name] = replace(entry[name], p_value_holm=p_value)
            else:
                entry[f"{name}_holm"] = p_value


def _tests(found: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, Any, float]]:
    """Where each test stands, its key there, what it shares with the same test elsewhere, and its p-value."""
    for name, value in found.items():
        if isinstance(value, dict):
            yield from _tests(value)
        elif isinstance(value, Estimate) and value.p_value is not None:
            yield found, name, (name, value), value.p_value
        elif name.endswith("p_value"):
            stem = name.removesuffix("p_value").removesuffix("_")
            own = tuple((k, v) for k, v in found.items() if k.startswith(stem) and isinstance(v, float))
            # a p-value without a figure beside it could be that of any test
            yield found, name, (name, *own) if len(own) > 1 else (name, id(found)), value


def mean(values: np.ndarray, *, weights: np.ndarray | None = None) -> Any:
    """Mean over cases, (n,) to a float, or one a row of weights (resamples, n). Raises ValueError for no case."""
    if len(values) == 0:
        raise ValueError("there is no such case")
    return values.mean() if weights is None else weights @ values / weights.sum(axis=-1)


def difference(
    metric: Callable[..., Any], y_true: np.ndarray, first: Any, second: Any, *, weights: np.ndarray | None = None
) -> Any:
    """A metric of the first prediction minus that of the second, on the same cases and, in a bootstrap, resamples."""
    return metric(y_true, first, weights=weights) - metric(y_true, second, weights=weights)


def interval_rows(estimate: Estimate, *, value: str = "value", **labels: Any) -> list[dict[str, Any]]:
    """The row that draws a figure with its interval, under the name `value`; none where it is absent."""
    if estimate.value is None:
        return []
    return [{**labels, value: estimate.value, "low": estimate.low, "high": estimate.high}]


def curve(series: str, **columns: np.ndarray) -> pd.DataFrame:
    """One named series of a diagram in long format; of more than 5,000 points 2,000, evenly spaced, with both ends."""
    table = pd.DataFrame({"series": series, **columns})
    if len(table) <= MOST_POINTS:
        return table
    return table.iloc[np.unique(np.linspace(0, len(table) - 1, POINTS).round().astype(int))]


def percent(share: float, digits: int = 0) -> str:
    """A share in words.

    >>> percent(0.0514), percent(0.0514, 1)
    ('5 %', '5.1 %')
    """
    return f"{100 * share:.{digits}f} %"

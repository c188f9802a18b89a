"""Figures of several readers on the same cases, with intervals that hold for other readers and other cases.

The analysis of Obuchowski & Rockette (1995) with the degrees of freedom of Hillis (2007), on jackknifed covariances. A
difference of two arms is a figure per reader as well, so that one formula serves both.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from tmv_lib.statistics.arrays import FloatArray, IntArray
from tmv_lib.statistics.tests import Z_95


class Jackknifed(NamedTuple):
    """A figure of each reader, (readers,), and what it is without each patient, (patients, readers)."""

    values: FloatArray
    without: FloatArray

    def minus(self, other: "Jackknifed") -> "Jackknifed":
        """The difference per reader, of two arms with the same readers and patients in the same order."""
        return Jackknifed(self.values - other.values, self.without - other.without)


class Summary(NamedTuple):
    """The mean over readers, its standard error, and the degrees of freedom of that."""

    value: float
    error: float
    freedom: float

    @property
    def reach(self) -> float:
        """Half the 95 % interval, by Student's t."""
        return self.error * (Z_95 if np.isinf(self.freedom) else float(stdtrit(self.freedom, 0.975)))


def jackknife(
    metric: Callable[..., Any], *arrays: np.ndarray, reader: IntArray, patient: IntArray, shape: tuple[int, int]
) -> Jackknifed:
    """A metric of arrays (n,) per reader, of all the patients and without each of them.

    reader and patient (n,): codes from 0, of which there are `shape` = (patients, readers); a reader need not have read
    everybody. The metric takes `weights`, as those of `tmv_lib.statistics`. Raises ValueError where it is not defined
    for a reader, or would not be without one of the patients.
    """
    n_patients, n_readers = shape
    values, without = np.empty(n_readers), np.empty(shape)
    for j in range(n_readers):
        own = reader == j
        rows = [array[own] for array in arrays]
        left = (patient[own] != np.arange(n_patients)[:, None]).astype(float)
        values[j], without[:, j] = metric(*rows), metric(*rows, weights=left)
    return Jackknifed(values, without)


def summarise(figure: Jackknifed) -> Summary:
    """The mean over readers with readers and cases random; of a single reader, with cases random alone.

    MS is the variance of the readers' figures, Cov2 the mean covariance of two readers' errors over cases. The degrees
    of freedom of one reader are infinite.
    """
    r, n = figure.values.size, len(figure.without)
    centred = figure.without - figure.without.mean(axis=0)
    covariance = (n - 1) / n * centred.T @ centred  # of the readers' errors, (r, r)
    value = float(figure.values.mean())
    if r == 1:
        error, freedom = float(np.sqrt(covariance[0, 0])), np.inf
    else:
        # var = [MS + r max(Cov2, 0)] / r,  df = [MS + r max(Cov2, 0)]^2 / [MS^2 / (r - 1)]
        ms = figure.values.var(ddof=1)
        cov2 = (covariance.sum() - np.trace(covariance)) / (r * (r - 1))
        total = ms + r * max(cov2, 0.0)
        error, freedom = float(np.sqrt(total / r)), float((r - 1) * (total / ms) ** 2) if ms > 0 else np.inf
    return Summary(value, error, freedom)

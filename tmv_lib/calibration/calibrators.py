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
from scipy.special import expit
from scipy.special import logit as log_odds
from sklearn.isotonic import IsotonicRegression

from tmv_lib.calibration.slope import weighted_logits
from tmv_lib.pipeline.files import whole
from tmv_lib.statistics.arrays import FloatArray, IntArray, as_finite
from tmv_lib.statistics.logistic import fit_logistic
from tmv_lib.statistics.ranking import auroc
from tmv_lib.statistics.resampling import clustered_standard_error, patient_folds

MERGED_FROM, LOGIT_CELL = 2**16, 2.0**-11  # calibrators of more cases are fitted on cells of the logit
PRIOR_SD = 0.5  # of a Normal prior about the identity on each parameter of `logistic` and `beta`
LEAST_SLOPE = 0.01  # of these two: both rise everywhere, whatever the cases say


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


@dataclass(frozen=True)
class Calibrator:
    """A fitted map from logit to calibrated logit: a key of `CALIBRATORS` and its parameters, numbers or lists."""

    name: str
    parameters: dict[str, Any]

    def __call__(self, logit: ArrayLike) -> FloatArray:
        flat = as_finite(np.ravel(logit), name="logit")
        return CALIBRATORS[self.name].transform(flat, **self.parameters).reshape(np.shape(logit))

    def probability(self, logit: ArrayLike) -> FloatArray:
        """The calibrated probability of a logit, same shape."""
        return np.asarray(expit(self(logit)))

    def boundary(self) -> float:
        """The logit above which the calibrated one exceeds 0; -inf where all do, inf where none does.

        By bisection down to two neighbouring numbers, since no calibrator falls anywhere.

        >>> Calibrator("logistic", {"intercept": -1.0, "slope": 2.0}).boundary()
        0.5
        """
        low, high = -1e6, 1e6
        if self([low])[0] > 0 or self([high])[0] <= 0:
            return -np.inf if self([low])[0] > 0 else np.inf
        while low < (middle := (low + high) / 2) < high:
            low, high = (low, middle) if self([middle])[0] > 0 else (middle, high)
        return low


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
    y, z, _ = weighted_logits(y_true, logit, None)
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
    y, z, _ = weighted_logits(y_true, logit, None)
    patient = _patient(groups, n=y.size)
    carried = min(np.unique(patient[y == label]).size for label in (0, 1))
    names = [name for name, kind in CALIBRATORS.items() if kind.fewest <= carried]
    fold = patient_folds(y, patient, n_folds=n_folds, rng=rng)
    logits = [_out_of_fold(name, y, z, patient, fold) for name in names]
    loss = np.logaddexp(0, (1 - 2 * y) * np.array(logits))
    excess = loss - loss[names.index("logistic")]
    error = np.array([clustered_standard_error(row, patient) for row in excess])
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
    y, z, _ = weighted_logits(y_true, logit, None)
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
    y, z, _ = weighted_logits(y_true, logit, None)
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
        coefficients[free] = fit_logistic(
            design[:, free],
            y,
            weights=w,
            ridge=1 / PRIOR_SD**2,
            centre=np.array(identity)[free],
            offset=design[:, ~free] @ coefficients[~free],
        )[0]
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

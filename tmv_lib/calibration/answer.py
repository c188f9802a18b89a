"""The answer to: when it says 87 %, is it right 87 % of the time?"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit

from tmv_lib.calibration import errors, prevalence, slope
from tmv_lib.calibration.calibrators import Calibrator, nested_choice, ranking
from tmv_lib.calibration.corp import corp_decomposition
from tmv_lib.pipeline.files import read_csv
from tmv_lib.pipeline.params import Params
from tmv_lib.statistics.classification import brier_score, negative_log_likelihood, per_patient
from tmv_lib.statistics.estimate import counts, difference, figure


class CalibrationParams(Params):
    bins: Annotated[int, Field(ge=2, le=100)]
    folds: Annotated[int, Field(ge=2, le=20)]
    noise_draws: Annotated[int, Field(ge=100)]
    prevalences: list[Annotated[float, Field(gt=0, lt=1)]]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


def read_predictions(path: str) -> pd.DataFrame:
    """What a network says of every case.

    Raises ValueError naming the file where val or test lacks a class, a class of val has one patient only, or the
    scores rank the wrong way on val: nothing that comes later could mend that.
    """
    predictions = read_csv(path, ["image_id", "patient_id", "split", "y_true", "logit"])
    for split in ("val", "test"):
        if set(predictions.loc[predictions["split"] == split, "y_true"]) != {0, 1}:
            raise ValueError(f"{path}: split {split} must hold both classes")
    val = predictions[predictions["split"] == "val"]
    by_class = val.groupby("y_true")["patient_id"].nunique()
    if by_class.min() < 2:
        raise ValueError(
            f"{path}: split val needs 2 patients of each class, found {by_class.min()}: one fits, one judges"
        )
    found = ranking(val["y_true"], val["logit"], groups=val["patient_id"])
    if found.high < 0.5:
        raise ValueError(
            f"{path}: the scores rank the wrong way: AUROC on val is {found.auroc:.3f}, its upper 97.5 % bound over"
            f" patients {found.high:.3f}; the labels or the sign of the logit are reversed"
        )
    return predictions


def chosen(calibrator: Calibrator, table: pd.DataFrame) -> dict[str, Any]:
    """The calibrator, and the AUROC before and after it, of patients of val held out, within their fold."""
    figures = {name: len(value) if isinstance(value, list) else value for name, value in calibrator.parameters.items()}
    before, after = (float(table.loc[row, "auroc"].iloc[0]) for row in (table["name"] == "identity", table["chosen"]))
    found: dict[str, Any] = {"calibrator": {"name": calibrator.name, **figures}}
    if np.isnan(before):
        return found | {"auroc_before_absent": "no fold of validation holds both classes"}
    return found | {"auroc_before": before, "auroc_after": after}


def procedure(val: pd.DataFrame, params: CalibrationParams, rng: np.random.Generator) -> dict[str, Any]:
    """What choosing and fitting a calibrator gains over leaving the logits alone, on patients that neither has seen."""
    y_true, logit, groups = (val[name].to_numpy() for name in ("y_true", "logit", "patient_id"))
    try:
        nested = nested_choice(y_true, logit, groups=groups, n_folds=params.folds, rng=rng)
    except ValueError as error:
        return {"nll_gain_absent": str(error)}
    gain = partial(difference, negative_log_likelihood)
    return {"times_chosen": dict(Counter(nested.names))} | figure(
        "nll_gain", gain, y_true, logit, nested.logit, groups=groups, n_resamples=params.resamples, rng=rng
    )


def measure(
    test: pd.DataFrame, logit: np.ndarray, params: CalibrationParams, rng: np.random.Generator
) -> dict[str, Any]:
    """Every figure of calibration on the test split, errors of calibration beside their noise floor."""
    y_true, y_prob, groups = test["y_true"].to_numpy(), expit(logit), test["patient_id"].to_numpy()
    found: dict[str, Any] = counts(y_true, groups)
    for view, outcome, probability in (
        ("positive_class", y_true, y_prob),
        ("top_label", *errors.top_label(y_true, y_prob)),
    ):
        for strategy in ("uniform", "quantile"):
            drawn = {"n_bins": params.bins, "strategy": strategy, "n_draws": params.noise_draws, "rng": rng}
            found |= stated(f"{view}_ece_{strategy}", tested, outcome, probability, **drawn)
        found |= stated(f"{view}_debiased", errors.debiased_calibration_error, outcome, probability, n_bins=params.bins)
        found[f"{view}_smooth_ece"] = errors.smooth_calibration_error(outcome, probability)
    found["corp"] = corp_decomposition(y_true, y_prob)._asdict()
    return found | with_intervals(y_true, logit, groups=groups, n_resamples=params.resamples, rng=rng)


def of_patients(
    test: pd.DataFrame, logit: np.ndarray, params: CalibrationParams, rng: np.random.Generator
) -> dict[str, Any]:
    """The same question of patients: the mean logit over a patient's images, positive if any image is."""
    y_true, pooled, patients = per_patient(test["y_true"], logit, test["patient_id"])
    found: dict[str, Any] = {"n": len(y_true), "n_positive": int(y_true.sum())}
    drawn = {"n_bins": params.bins, "n_draws": params.noise_draws, "rng": rng}
    found |= stated("positive_class_ece_uniform", tested, y_true, expit(pooled), **drawn)
    return found | with_intervals(y_true, pooled, groups=patients, n_resamples=params.resamples, rng=rng)


def with_intervals(y_true: np.ndarray, logit: np.ndarray, **resampling: Any) -> dict[str, Any]:
    """The figures that carry an interval over resampled patients, whatever the classes drawn."""
    found: dict[str, Any] = figure("brier_score", brier_score, y_true, expit(logit), **resampling)
    found |= figure("nll", negative_log_likelihood, y_true, logit, **resampling)
    found |= figure("slope", slope.calibration_slope, y_true, logit, **resampling)
    return found | figure("in_the_large", slope.calibration_in_the_large, y_true, logit, **resampling)


def elsewhere(
    test: pd.DataFrame, logit: np.ndarray, source: float, params: CalibrationParams, rng: np.random.Generator
) -> dict[str, Any]:
    """Calibration where another share of cases is positive (weighted test cases), as it stands and with the shift."""
    y_true, groups = test["y_true"].to_numpy(), test["patient_id"].to_numpy()
    resampling = {"groups": groups, "stratify": y_true, "n_resamples": params.resamples, "rng": rng}
    found: dict[str, Any] = {"source": source}
    for target in params.prevalences:
        shifted = prevalence.at_prevalence(logit, source=source, target=target)
        found[f"{target:g}"] = {"unshifted": {}, "shifted": {}}
        for entry, z in zip(found[f"{target:g}"].values(), (logit, shifted), strict=True):
            for name, metric, values in (
                ("brier_score", brier_score, expit(z)),
                ("nll", negative_log_likelihood, z),
                ("in_the_large", slope.calibration_in_the_large, z),
            ):
                entry |= figure(name, partial(weighted, metric, target), y_true, values, **resampling)
    return found


def weighted(metric: Callable[..., Any], target: float, y_true: np.ndarray, values: Any, *, weights: Any = None) -> Any:
    """A metric of cases weighted so that the share `target` of them is positive."""
    return metric(y_true, values, weights=prevalence.prevalence_weights(y_true, target=target, weights=weights))


def tested(*arrays: Any, **options: Any) -> dict[str, float]:
    """An ECE beside its noise floor, as it stands in the metrics file."""
    return errors.calibration_test(*arrays, **options)._asdict()


def stated(name: str, compute: Callable[..., Any], *arrays: Any, **options: Any) -> dict[str, Any]:
    """What `compute` finds under its name, or the reason why it finds nothing."""
    try:
        return {name: compute(*arrays, **options)}
    except ValueError as error:
        return {f"{name}_absent": str(error)}


def thinned(curve: pd.DataFrame) -> pd.DataFrame:
    """The corners of a step curve, and between them about as many points as a screen can show of its band."""
    steps = curve["recalibrated"].diff().ne(0)
    every = np.arange(len(curve)) % (1 + len(curve) // 200) == 0
    return curve[steps | steps.shift(-1, fill_value=True) | every]

"""When it says 87 %, is it right 87 % of the time?"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit

from tmv_lib import calibration
from tmv_lib.classification import brier_score, negative_log_likelihood, per_patient
from tmv_lib.files import join, read_csv, write_csv, write_metrics
from tmv_lib.params import Params, named_members, read
from tmv_lib.reporting import adjust, counts, difference, figure
from tmv_lib.stage import run


class CalibrationParams(Params):
    bins: Annotated[int, Field(ge=2, le=100)]
    folds: Annotated[int, Field(ge=2, le=20)]
    noise_draws: Annotated[int, Field(ge=100)]
    prevalences: list[Annotated[float, Field(gt=0, lt=1)]]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


def main() -> None:
    params = read("params.yaml", "calibration", CalibrationParams)
    rng = np.random.default_rng(params.seed)
    calibrators, calibrated_tables, diagrams, curves, tables, metrics = {}, [], [], [], [], {}
    for member in named_members("params.yaml"):
        path = f"data/train/{member}/predictions.csv"
        predictions = read_predictions(path)
        val, test = (predictions[predictions["split"] == split] for split in ("val", "test"))
        y_true, logit = val["y_true"], val["logit"]
        folded = {"groups": val["patient_id"], "n_folds": params.folds, "rng": rng}
        try:
            choice = calibration.choose_calibrator(y_true, logit, **folded)
        except ValueError as error:
            raise ValueError(f"{path}: split val in {params.folds} folds (calibration.folds): {error}") from None
        calibrator = calibration.fit_calibrator(choice.name, y_true, logit, groups=val["patient_id"])
        calibrators[member] = calibrator
        calibrated = calibrator(predictions["logit"])
        # What learns from val must see it calibrated by others, or its errors look rarer than they are.
        cross_fitted = calibrated.copy()
        cross_fitted[predictions["split"] == "val"] = calibration.cross_fitted(choice.name, y_true, logit, **folded)
        columns = {"logit": calibrated, "y_prob": expit(calibrated), "cross_fitted_logit": cross_fitted}
        named = {f"{name}_{member}": values for name, values in columns.items()}
        calibrated_tables.append(predictions[["image_id"]].assign(**named))

        metrics[member] = chosen(calibrator, choice.table) | {"procedure": procedure(val, params, rng)}
        excess, spread = choice.table["excess"], choice.table["standard_error"]
        ends = {"low": excess - spread, "high": excess + spread}
        tables.append(choice.table.assign(**ends, series=member))
        for phase, z in (("before", test["logit"].to_numpy()), ("after", calibrator(test["logit"]))):
            # each phase from the same seed: logits left as they were have the same figures, and are one test
            metrics[member][phase] = measure(test, z, params, np.random.default_rng(params.seed))
            curve = calibration.reliability_curve(test["y_true"], expit(z), n_bins=params.bins)
            diagrams.append(pd.DataFrame(curve._asdict()).assign(series=member, phase=phase))
            corp = calibration.corp_curve(test["y_true"], expit(z), n_draws=params.noise_draws, rng=rng)
            curves.append(thinned(pd.DataFrame(corp._asdict())).assign(series=member, phase=phase))
        metrics[member]["after_per_patient"] = of_patients(test, z, params, rng)
        metrics[member]["at_prevalence"] = elsewhere(test, z, y_true.mean(), params, rng)
    adjust(metrics)
    calibration.write_calibrators("data/calibration/calibrators.json", calibrators)
    write_csv("data/calibration/cases.csv", join(*calibrated_tables))
    write_csv("plots/calibration/reliability.csv", pd.concat(diagrams), digits=6)
    write_csv("plots/calibration/corp.csv", pd.concat(curves), digits=6)
    write_csv("plots/calibration/calibrators.csv", pd.concat(tables), digits=6)
    write_metrics("metrics/calibration.json", {"calibration": metrics})


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
    found = calibration.ranking(val["y_true"], val["logit"], groups=val["patient_id"])
    if found.high < 0.5:
        raise ValueError(
            f"{path}: the scores rank the wrong way: AUROC on val is {found.auroc:.3f}, its upper 97.5 % bound over"
            f" patients {found.high:.3f}; the labels or the sign of the logit are reversed"
        )
    return predictions


def chosen(calibrator: calibration.Calibrator, table: pd.DataFrame) -> dict[str, Any]:
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
        nested = calibration.nested_choice(y_true, logit, groups=groups, n_folds=params.folds, rng=rng)
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
        ("top_label", *calibration.top_label(y_true, y_prob)),
    ):
        for strategy in ("uniform", "quantile"):
            drawn = {"n_bins": params.bins, "strategy": strategy, "n_draws": params.noise_draws, "rng": rng}
            found |= stated(f"{view}_ece_{strategy}", tested, outcome, probability, **drawn)
        found |= stated(
            f"{view}_debiased", calibration.debiased_calibration_error, outcome, probability, n_bins=params.bins
        )
        found[f"{view}_smooth_ece"] = calibration.smooth_calibration_error(outcome, probability)
    found["corp"] = calibration.corp_decomposition(y_true, y_prob)._asdict()
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
    found |= figure("slope", calibration.calibration_slope, y_true, logit, **resampling)
    return found | figure("in_the_large", calibration.calibration_in_the_large, y_true, logit, **resampling)


def elsewhere(
    test: pd.DataFrame, logit: np.ndarray, source: float, params: CalibrationParams, rng: np.random.Generator
) -> dict[str, Any]:
    """Calibration where another share of cases is positive (weighted test cases), as it stands and with the shift."""
    y_true, groups = test["y_true"].to_numpy(), test["patient_id"].to_numpy()
    resampling = {"groups": groups, "stratify": y_true, "n_resamples": params.resamples, "rng": rng}
    found: dict[str, Any] = {"source": source}
    for target in params.prevalences:
        shifted = calibration.at_prevalence(logit, source=source, target=target)
        found[f"{target:g}"] = {"unshifted": {}, "shifted": {}}
        for entry, z in zip(found[f"{target:g}"].values(), (logit, shifted), strict=True):
            for name, metric, values in (
                ("brier_score", brier_score, expit(z)),
                ("nll", negative_log_likelihood, z),
                ("in_the_large", calibration.calibration_in_the_large, z),
            ):
                entry |= figure(name, partial(weighted, metric, target), y_true, values, **resampling)
    return found


def weighted(metric: Callable[..., Any], target: float, y_true: np.ndarray, values: Any, *, weights: Any = None) -> Any:
    """A metric of cases weighted so that the share `target` of them is positive."""
    return metric(y_true, values, weights=calibration.prevalence_weights(y_true, target=target, weights=weights))


def tested(*arrays: Any, **options: Any) -> dict[str, float]:
    """An ECE beside its noise floor, as it stands in the metrics file."""
    return calibration.calibration_test(*arrays, **options)._asdict()


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


if __name__ == "__main__":
    run(main)

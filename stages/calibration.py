"""When it says 87 %, is it right 87 % of the time?"""

from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit

from tmv_lib import calibration
from tmv_lib.classification import brier_score, negative_log_likelihood
from tmv_lib.files import join, read_csv, write_csv, write_metrics
from tmv_lib.params import Params, read, read_members
from tmv_lib.reporting import counts, figure
from tmv_lib.stage import run
from tmv_lib.statistics import holm


class CalibrationParams(Params):
    bins: Annotated[int, Field(ge=2, le=100)]
    folds: Annotated[int, Field(ge=2, le=20)]
    noise_draws: Annotated[int, Field(ge=100)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


def main() -> None:
    params = read("params.yaml", "calibration", CalibrationParams)
    rng = np.random.default_rng(params.seed)
    calibrated_tables, diagrams, tables, metrics = [], [], [], {}
    for member in read_members("params.yaml"):
        path = f"data/train/{member}/predictions.csv"
        predictions = read_csv(path, ["image_id", "patient_id", "split", "y_true", "logit"])
        for split in ("val", "test"):
            if set(predictions.loc[predictions["split"] == split, "y_true"]) != {0, 1}:
                raise ValueError(f"{path}: split {split} must hold both classes")
        val, test = (predictions[predictions["split"] == split] for split in ("val", "test"))
        choice = calibration.choose_calibrator(
            val["y_true"], val["logit"], groups=val["patient_id"], n_folds=params.folds, rng=rng
        )
        calibrator = calibration.fit_calibrator(choice.name, val["y_true"], val["logit"])
        calibrated = calibrator(predictions["logit"])
        # What learns from val must see it calibrated by others, or its errors look rarer than they are.
        cross_fitted = calibrated.copy()
        cross_fitted[predictions["split"] == "val"] = calibration.cross_fitted(
            choice.name, val["y_true"], val["logit"], groups=val["patient_id"], n_folds=params.folds, rng=rng
        )
        columns = {"logit": calibrated, "y_prob": expit(calibrated), "cross_fitted_logit": cross_fitted}
        named = {f"{name}_{member}": values for name, values in columns.items()}
        calibrated_tables.append(predictions[["image_id"]].assign(**named))

        metrics[member] = {"calibrator": {"name": choice.name, **calibrator.parameters}}
        tables.append(choice.table.assign(series=member))
        for phase, logit in (("before", test["logit"]), ("after", calibrator(test["logit"]))):
            metrics[member][phase] = measure(test, np.asarray(logit), params, rng)
            curve = calibration.reliability_curve(test["y_true"], expit(logit), n_bins=params.bins)
            diagrams.append(pd.DataFrame(curve._asdict()).assign(series=member, phase=phase))
    adjust(metrics)
    write_csv("data/calibration/cases.csv", join(*calibrated_tables))
    write_csv("plots/calibration/reliability.csv", pd.concat(diagrams))
    write_csv("plots/calibration/calibrators.csv", pd.concat(tables))
    write_metrics("metrics/calibration.json", {"calibration": metrics})


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
            error = calibration.expected_calibration_error(outcome, probability, n_bins=params.bins, strategy=strategy)
            floor = calibration.calibration_noise_floor(
                probability, n_bins=params.bins, strategy=strategy, n_draws=params.noise_draws, rng=rng
            )
            found[f"{view}_ece_{strategy}"] = {
                "ece": error,
                "noise_floor": floor.mean,
                "noise_floor_p95": floor.p95,
                "p_value": floor.p_value(error),
            }
        found[f"{view}_debiased"] = calibration.debiased_calibration_error(outcome, probability, n_bins=params.bins)
        found[f"{view}_mce"] = calibration.maximum_calibration_error(outcome, probability, n_bins=params.bins)
        found[f"{view}_smooth_ece"] = calibration.smooth_calibration_error(outcome, probability)
    found["corp"] = calibration.corp_decomposition(y_true, y_prob)._asdict()
    resampled = partial(figure, groups=groups, stratify=y_true, n_resamples=params.resamples, rng=rng)
    found |= resampled("brier_score", brier_score, y_true, y_prob)
    found |= resampled("nll", negative_log_likelihood, y_true, logit)
    found |= resampled("slope", calibration.calibration_slope, y_true, logit)
    found |= resampled("in_the_large", calibration.calibration_in_the_large, y_true, logit)
    return found


def adjust(metrics: dict[str, Any]) -> None:
    """Add Holm's adjustment over all the noise-floor tests of this stage."""
    tests = [
        entry
        for member in metrics.values()
        for phase in ("before", "after")
        for entry in member[phase].values()
        if isinstance(entry, dict) and "p_value" in entry
    ]
    for entry, adjusted in zip(tests, holm([entry["p_value"] for entry in tests]), strict=True):
        entry["p_value_holm"] = float(adjusted)


if __name__ == "__main__":
    run(main)

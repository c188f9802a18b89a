"""When it says 87 %, is it right 87 % of the time?"""

from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit

from tmv_lib import calibration
from tmv_lib.classification import brier_score, negative_log_likelihood
from tmv_lib.files import read_csv, write_csv, write_metrics
from tmv_lib.params import Params, read, read_members
from tmv_lib.reporting import counts, figure
from tmv_lib.stage import run


class CalibrationParams(Params):
    bins: Annotated[int, Field(ge=2, le=100)]
    folds: Annotated[int, Field(ge=2, le=20)]
    noise_draws: Annotated[int, Field(ge=100)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


def main() -> None:
    params = read("params.yaml", "calibration", CalibrationParams)
    rng = np.random.default_rng(params.seed)
    cases, diagrams, tables, metrics = pd.DataFrame(), [], [], {}
    for member in read_members("params.yaml"):
        predictions = read_csv(
            f"data/train/{member}/predictions.csv", ["image_id", "patient_id", "split", "y_true", "logit"]
        )
        val, test = (predictions[predictions["split"] == split] for split in ("val", "test"))
        choice = calibration.choose_calibrator(
            val["y_true"], val["logit"], groups=val["patient_id"], n_folds=params.folds, rng=rng
        )
        calibrator = calibration.fit_calibrator(choice.name, val["y_true"], val["logit"])
        calibrated = calibrator(predictions["logit"])
        cases["image_id"] = predictions["image_id"]
        cases[f"logit_{member}"], cases[f"y_prob_{member}"] = calibrated, expit(calibrated)

        metrics[member] = {"calibrator": {"name": choice.name, **calibrator.parameters}}
        tables.append(choice.table.assign(series=member))
        for phase, logit in (("before", test["logit"]), ("after", calibrator(test["logit"]))):
            metrics[member][phase] = measure(test, np.asarray(logit), params, rng)
            curve = calibration.reliability_curve(test["y_true"], expit(logit), n_bins=params.bins)
            diagrams.append(pd.DataFrame(curve._asdict()).assign(series=member, phase=phase))
    write_csv("data/calibration/cases.csv", cases)
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


if __name__ == "__main__":
    run(main)

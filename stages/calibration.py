"""When it says 87 %, is it right 87 % of the time?"""

import numpy as np
import pandas as pd
from scipy.special import expit

from tmv_lib.calibration import calibrators as calibrators_
from tmv_lib.calibration import errors
from tmv_lib.calibration.answer import (
    CalibrationParams,
    chosen,
    elsewhere,
    measure,
    of_patients,
    procedure,
    read_predictions,
    thinned,
)
from tmv_lib.calibration.calibrators import choose_calibrator, fit_calibrator, write_calibrators
from tmv_lib.calibration.corp import corp_curve
from tmv_lib.pipeline.files import join, write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import named_members, read
from tmv_lib.pipeline.stage import run
from tmv_lib.statistics.estimate import adjust


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
            choice = choose_calibrator(y_true, logit, **folded)
        except ValueError as error:
            raise ValueError(f"{path}: split val in {params.folds} folds (calibration.folds): {error}") from None
        calibrator = fit_calibrator(choice.name, y_true, logit, groups=val["patient_id"])
        calibrators[member] = calibrator
        calibrated = calibrator(predictions["logit"])
        # What learns from val must see it calibrated by others, or its errors look rarer than they are.
        cross_fitted = calibrated.copy()
        cross_fitted[predictions["split"] == "val"] = calibrators_.cross_fitted(choice.name, y_true, logit, **folded)
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
            curve = errors.reliability_curve(test["y_true"], expit(z), n_bins=params.bins)
            diagrams.append(pd.DataFrame(curve._asdict()).assign(series=member, phase=phase))
            corp = corp_curve(test["y_true"], expit(z), n_draws=params.noise_draws, rng=rng)
            curves.append(thinned(pd.DataFrame(corp._asdict())).assign(series=member, phase=phase))
        metrics[member]["after_per_patient"] = of_patients(test, z, params, rng)
        metrics[member]["at_prevalence"] = elsewhere(test, z, y_true.mean(), params, rng)
    adjust(metrics)
    write_calibrators("data/calibration/calibrators.json", calibrators)
    write_csv("data/calibration/cases.csv", join(*calibrated_tables))
    write_csv("plots/calibration/reliability.csv", pd.concat(diagrams), digits=6)
    write_csv("plots/calibration/corp.csv", pd.concat(curves), digits=6)
    write_csv("plots/calibration/calibrators.csv", pd.concat(tables), digits=6)
    write_metrics("metrics/calibration.json", {"calibration": metrics})


if __name__ == "__main__":
    run(main)

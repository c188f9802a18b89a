"""The answer to: when it says 87 %, is it right 87 % of the time?"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit

from tmv_lib.calibration import calibrators, errors, prevalence, slope
from tmv_lib.calibration.calibrators import Calibrator
from tmv_lib.calibration.corp import corp_curve, corp_decomposition
from tmv_lib.pipeline.params import Params, Resamples, Seed
from tmv_lib.statistics.classification import brier_score, negative_log_likelihood, per_patient
from tmv_lib.statistics.estimate import Estimate, Resampler, difference
from tmv_lib.statistics.ranking import auroc_with_upper_bound
from tmv_lib.statistics.resampling import generator


class CalibrationParams(Params):
    bins: Annotated[int, Field(ge=2, le=100)]
    folds: Annotated[int, Field(ge=2, le=20)]
    noise_draws: Resamples
    prevalences: list[Annotated[float, Field(gt=0, lt=1)]]
    resamples: Resamples
    seed: Seed


class Answer(NamedTuple):
    """What is known of one member's calibration.

    cases: `image_id`, calibrated `logit`, its `y_prob`, and `cross_fitted_logit`. plots: tables by the name of a plot.
    """

    calibrator: Calibrator
    cases: pd.DataFrame
    metrics: dict[str, Any]
    plots: dict[str, pd.DataFrame]


def require_usable(predictions: pd.DataFrame) -> None:
    """Raise ValueError where val or test lacks a class, a class of val has one patient only, or the scores rank the
    wrong way on val: nothing that comes later could mend that.
    """
    for split in ("val", "test"):
        if set(predictions.loc[predictions["split"] == split, "y_true"]) != {0, 1}:
            raise ValueError(f"split {split} must hold both classes")
    val = predictions[predictions["split"] == "val"]
    fewest = val.groupby("y_true")["patient_id"].nunique().min()
    if fewest < 2:
        raise ValueError(f"split val needs 2 patients of each class, found {fewest}: one fits, one judges")
    ranked = auroc_with_upper_bound(val["y_true"], val["score"], groups=val["patient_id"])
    if ranked.high < 0.5:
        raise ValueError(
            f"the scores rank the wrong way: AUROC on val is {ranked.auroc:.3f}, its upper 97.5 % bound over patients"
            f" {ranked.high:.3f}; the labels or the sign of the logit are reversed"
        )


def calibrate(predictions: pd.DataFrame, params: CalibrationParams) -> Answer:
    """Choose and fit a calibrator on val, and see on test what it is worth.

    predictions: `image_id`, `patient_id`, `split`, `y_true`, `score`. Raises ValueError as `require_usable`, and for
    fewer patients than folds.
    """
    require_usable(predictions)
    val, test = (predictions[predictions["split"] == split] for split in ("val", "test"))
    y_true, score = val["y_true"], val["score"]
    rng = np.random.default_rng(params.seed)  # of the folds alone, which are the same for every member
    folds: dict[str, Any] = {"groups": val["patient_id"], "n_folds": params.folds, "rng": rng}
    try:
        choice = calibrators.choose_calibrator(y_true, score, **folds)
    except ValueError as error:
        raise ValueError(f"split val in {params.folds} folds (calibration.folds): {error}") from None
    calibrator = calibrators.fit_calibrator(choice.name, y_true, score, groups=val["patient_id"])
    calibrated = calibrator(predictions["score"])
    # What learns from val must see it calibrated by others, or its errors look rarer than they are.
    cross_fitted = calibrated.copy()
    cross_fitted[predictions["split"] == "val"] = calibrators.cross_fitted(choice.name, y_true, score, **folds)
    columns = {"logit": calibrated, "y_prob": expit(calibrated), "cross_fitted_logit": cross_fitted}

    metrics = describe(calibrator, choice.table) | {"procedure": gain_of_procedure(val, params, rng)}
    bars = choice.table["excess"], choice.table["standard_error"]
    plots = {"calibrators": choice.table.assign(low=bars[0] - bars[1], high=bars[0] + bars[1])}
    phases = {"before": test["score"].to_numpy(), "after": calibrator(test["score"])}
    for phase, logit in phases.items():
        metrics[phase] = measure(test, logit, params)
    diagrams = {
        phase: errors.reliability_curve(test["y_true"], expit(z), n_bins=params.bins) for phase, z in phases.items()
    }
    curves = {
        phase: corp_curve(test["y_true"], expit(z), n_draws=params.noise_draws, rng=generator(params.seed, "band"))
        for phase, z in phases.items()
    }
    plots["reliability"] = pd.concat(pd.DataFrame(one._asdict()).assign(phase=phase) for phase, one in diagrams.items())
    plots["corp"] = pd.concat(thin(pd.DataFrame(one._asdict())).assign(phase=phase) for phase, one in curves.items())
    metrics["after_per_patient"] = measure_patients(test, phases["after"], params)
    metrics["at_prevalence"] = measure_elsewhere(test, phases["after"], float(y_true.mean()), params)
    return Answer(calibrator, predictions[["image_id"]].assign(**columns), metrics, plots)


def describe(calibrator: Calibrator, table: pd.DataFrame) -> dict[str, Any]:
    """The calibrator, and the AUROC before and after it, of patients of val held out, within their fold."""
    figures = {name: len(value) if isinstance(value, list) else value for name, value in calibrator.parameters.items()}
    before, after = (float(table.loc[row, "auroc"].iloc[0]) for row in (table["name"] == "identity", table["chosen"]))
    described: dict[str, Any] = {"calibrator": {"name": calibrator.name, **figures}}
    if np.isnan(before):
        return described | {"auroc_before": Estimate(absent="no fold of validation holds both classes")}
    return described | {"auroc_before": before, "auroc_after": after}


def gain_of_procedure(val: pd.DataFrame, params: CalibrationParams, rng: np.random.Generator) -> dict[str, Any]:
    """What choosing and fitting a calibrator gains over leaving the logits alone, on patients that neither has seen."""
    y_true, score, groups = (val[name].to_numpy() for name in ("y_true", "score", "patient_id"))
    try:
        nested = calibrators.nested_choice(y_true, score, groups=groups, n_folds=params.folds, rng=rng)
    except ValueError as error:
        return {"nll_gain": Estimate(absent=str(error))}
    gain = partial(difference, negative_log_likelihood)
    resampler = Resampler(groups, params.resamples, params.seed)
    return {
        "times_chosen": dict(Counter(nested.names)),
        "nll_gain": resampler.estimate(gain, y_true, score, nested.logit),
    }


def measure(test: pd.DataFrame, logit: np.ndarray, params: CalibrationParams) -> dict[str, Any]:
    """Every figure of calibration on the test split, errors of calibration beside their noise floor.

    Logits that a calibrator left as they were have the same figures, and are one test.
    """
    y_true, y_prob = test["y_true"].to_numpy(), expit(logit)
    resampler = Resampler(test["patient_id"].to_numpy(), params.resamples, params.seed)
    figures: dict[str, Any] = resampler.counts(y_true)
    for view, outcome, probability in (
        ("positive_class", y_true, y_prob),
        ("top_label", *errors.top_label(y_true, y_prob)),
    ):
        for strategy in ("uniform", "quantile"):
            figures[f"{view}_ece_{strategy}"] = tested(outcome, probability, params, strategy=strategy)
        debiased = partial(errors.debiased_calibration_error, outcome, probability, n_bins=params.bins)
        figures[f"{view}_debiased"] = or_absent(debiased)
        figures[f"{view}_smooth_ece"] = errors.smooth_calibration_error(outcome, probability)
    figures["corp"] = corp_decomposition(y_true, y_prob)._asdict()
    return figures | with_intervals(y_true, logit, resampler)


def measure_patients(test: pd.DataFrame, logit: np.ndarray, params: CalibrationParams) -> dict[str, Any]:
    """The same question of patients: the mean logit over a patient's images, positive if any image is."""
    y_true, pooled, patients = per_patient(test["y_true"], logit, test["patient_id"])
    figures: dict[str, Any] = {"n": len(y_true), "n_positive": int(y_true.sum())}
    figures["positive_class_ece_uniform"] = tested(y_true, expit(pooled), params)
    return figures | with_intervals(y_true, pooled, Resampler(patients, params.resamples, params.seed))


def with_intervals(y_true: np.ndarray, logit: np.ndarray, resampler: Resampler) -> dict[str, Estimate]:
    """The figures that carry an interval over resampled patients, whatever the classes drawn."""
    return {
        "brier_score": resampler.estimate(brier_score, y_true, expit(logit)),
        "nll": resampler.estimate(negative_log_likelihood, y_true, logit),
        "slope": resampler.estimate(slope.calibration_slope, y_true, logit),
        "in_the_large": resampler.estimate(slope.calibration_in_the_large, y_true, logit),
    }


def measure_elsewhere(
    test: pd.DataFrame, logit: np.ndarray, source: float, params: CalibrationParams
) -> dict[str, Any]:
    """Calibration where another share of cases is positive (weighted test cases), as it stands and with the shift."""
    y_true = test["y_true"].to_numpy()
    resampler = Resampler(test["patient_id"].to_numpy(), params.resamples, params.seed)
    figures: dict[str, Any] = {"source": source}
    for target in params.prevalences:
        shifted = prevalence.at_prevalence(logit, source=source, target=target)
        figures[f"{target:g}"] = {
            phase: {
                name: resampler.estimate(partial(weighted, metric, target), y_true, values, stratify=y_true)
                for name, metric, values in (
                    ("brier_score", brier_score, expit(z)),
                    ("nll", negative_log_likelihood, z),
                    ("in_the_large", slope.calibration_in_the_large, z),
                )
            }
            for phase, z in (("unshifted", logit), ("shifted", shifted))
        }
    return figures


def weighted(metric: Callable[..., Any], target: float, y_true: np.ndarray, values: Any, *, weights: Any = None) -> Any:
    """A metric of cases weighted so that the share `target` of them is positive."""
    return metric(y_true, values, weights=prevalence.prevalence_weights(y_true, target=target, weights=weights))


def tested(outcome: np.ndarray, y_prob: np.ndarray, params: CalibrationParams, **options: str) -> Any:
    """An ECE beside its noise floor, or the reason why there is none."""
    rng = generator(params.seed, "noise floor")
    draws: dict[str, Any] = {"n_bins": params.bins, "n_draws": params.noise_draws, "rng": rng, **options}
    return or_absent(lambda: errors.calibration_test(outcome, y_prob, **draws)._asdict())


def or_absent(compute: Callable[[], Any]) -> Any:
    """What is computed, or an absent figure with the reason."""
    try:
        return compute()
    except ValueError as error:
        return Estimate(absent=str(error))


def thin(curve: pd.DataFrame) -> pd.DataFrame:
    """The corners of a step curve, and between them about as many points as a screen can show of its band."""
    steps = curve["recalibrated"].diff().ne(0)
    every = np.arange(len(curve)) % (1 + len(curve) // 200) == 0
    return curve[steps | steps.shift(-1, fill_value=True) | every]

"""The answers to: how well does a network read unseen images, and does a second one err on different ones?"""

from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit

from tmv_lib.calibration.errors import expected_calibration_error
from tmv_lib.pipeline.files import join, read_csv
from tmv_lib.pipeline.params import Params
from tmv_lib.statistics.classification import (
    accuracy,
    brier_score,
    confusion_counts,
    f1_score,
    logistic_miscalibration,
    negative_log_likelihood,
    operating_point,
    per_patient,
    sensitivity,
    specificity,
)
from tmv_lib.statistics.estimate import adjust, by_class, counts, difference, figure, mean
from tmv_lib.statistics.ranking import auroc, average_precision
from tmv_lib.statistics.tests import delong_test, mcnemar_exact


def performance(
    val: pd.DataFrame, test: pd.DataFrame, *, sensitivity: float, n_resamples: int, rng: np.random.Generator
) -> dict[str, Any]:
    """How well one model reads the test cases, per image and, under `per_patient`, per patient.

    val, test: `y_true`, `score` (the network's logit), `logit` (calibrated) and `patient_id`, a row an image. Ranking
    by the score; decisions at calibrated p > 0.5, and at the operating point whose sensitivity on val is the one
    given, for images and patients each its own. Every figure with its interval, counts excepted.
    """
    read = partial(_read, sensitivity=sensitivity, n_resamples=n_resamples, rng=rng)
    return read(val, test) | {"per_patient": read(by_patient(val), by_patient(test))}


def by_patient(cases: pd.DataFrame) -> pd.DataFrame:
    """A row a patient from a row an image: `y_true`, `score`, `logit`, `patient_id` as `per_patient` pools them."""
    y_true, score, patient_id = per_patient(cases["y_true"], cases["score"], cases["patient_id"])
    logit = per_patient(cases["y_true"], cases["logit"], cases["patient_id"]).logit
    return pd.DataFrame({"y_true": y_true, "score": score, "logit": logit, "patient_id": patient_id})


def _read(
    val: pd.DataFrame, test: pd.DataFrame, *, sensitivity: float, n_resamples: int, rng: np.random.Generator
) -> dict[str, Any]:
    y_true, score, logit, groups = (test[name].to_numpy() for name in ("y_true", "score", "logit", "patient_id"))
    resampled = partial(figure, groups=groups, n_resamples=n_resamples, rng=rng)
    found: dict[str, Any] = counts(y_true, groups)
    found |= resampled("auroc", auroc, y_true, score, stratify=y_true)
    found |= resampled("average_precision", average_precision, y_true, score)
    found |= resampled("brier_score", brier_score, y_true, expit(logit))
    found |= resampled("nll", negative_log_likelihood, y_true, logit)
    threshold = operating_point(val["y_true"], val["score"], sensitivity=sensitivity)
    for name, y_pred in (("at_half", expit(logit) > 0.5), ("at_operating_point", score > threshold)):
        decided = y_pred.astype(int)
        tn, fp, fn, tp = confusion_counts(y_true, decided)
        found[name] = {"true_negative": tn, "false_positive": fp, "false_negative": fn, "true_positive": tp}
        found[name] |= resampled("accuracy", accuracy, y_true, decided)
        found[name] |= resampled("f1_score", f1_score, y_true, decided)
        found[name] |= by_class(y_true, decided, groups=groups, n_resamples=n_resamples, rng=rng)
    return found


class BaselineParams(Params):
    sensitivity: Annotated[float, Field(gt=0, lt=1)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


LEVEL = 0.05  # of the tests, after Holm
UNTESTED = "resampling raises the ECE of two models unequally: neither interval nor test would hold"


class DiversityParams(Params):
    sensitivity: Annotated[float, Field(gt=0, lt=1)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


def read_member(member: str) -> pd.DataFrame:
    """What a network said of every case, before calibration (`score`) and after (`logit`)."""
    columns = ["image_id", "patient_id", "split", "y_true", "logit"]
    predictions = read_csv(f"data/train/{member}/predictions.csv", columns).rename(columns={"logit": "score"})
    calibrated = read_csv("data/calibration/cases.csv", ["image_id", f"logit_{member}"])
    return join(predictions, calibrated.rename(columns={f"logit_{member}": "logit"}))


def errors(test: dict[str, pd.DataFrame], params: DiversityParams) -> dict[str, Any]:
    """Whose errors are whose, deciding at calibrated p > 0.5, and the two tests that take images as independent."""
    rows, *_ = test.values()
    y_true, groups = rows["y_true"].to_numpy(), rows["patient_id"].to_numpy()
    decided = [expit(rows["logit"].to_numpy()) > 0.5 for rows in test.values()]
    wrong = [decision != y_true for decision in decided]
    only_first, only_second = int((wrong[0] & ~wrong[1]).sum()), int((wrong[1] & ~wrong[0]).sum())
    found: dict[str, Any] = {
        "disagreement": int((decided[0] != decided[1]).sum()),
        "both_right": int((~wrong[0] & ~wrong[1]).sum()),
        "only_first_wrong": only_first,
        "only_second_wrong": only_second,
        "double_fault": int((wrong[0] & wrong[1]).sum()),
        "mcnemar_p_value": mcnemar_exact(only_first, only_second),
    }
    try:
        found["delong"] = delong_test(y_true, *(rows["score"] for rows in test.values()))._asdict()
    except ValueError as error:
        found["delong_absent"] = str(error)
    resampling = {"groups": groups, "n_resamples": params.resamples, "rng": np.random.default_rng(params.seed)}
    return found | figure("disagreement_rate", mean, (decided[0] != decided[1]).astype(float), **resampling)


def differences(val: dict[str, pd.DataFrame], test: dict[str, pd.DataFrame], params: DiversityParams) -> dict[str, Any]:
    """Every figure of the first member minus that of the second, tested; and who is better.

    Holm's adjustment over the tests of the claim (AUROC; miscalibration, raw and calibrated), and over all others; what
    calibration leaves as it was is one test, not two. Miscalibration says who is better calibrated: unlike NLL and
    Brier score it has nothing to do with ranking, and unlike that of ECE its difference is not biased.
    """
    first, second = test
    points = [operating_point(rows["y_true"], rows["score"], sensitivity=params.sensitivity) for rows in val.values()]
    raw, calibrated = ([rows[name].to_numpy() for rows in test.values()] for name in ("score", "logit"))
    patients = [by_patient(rows) for rows in test.values()]
    compare = partial(compared, test[first], params=params)

    claimed: dict[str, Any] = compare("auroc", auroc, raw, stratify=True)
    claimed["raw"] = compare("logistic_miscalibration", logistic_miscalibration, raw)
    claimed["calibrated"] = compare("logistic_miscalibration", logistic_miscalibration, calibrated)
    others: dict[str, Any] = compare("average_precision", average_precision, raw)
    others["at_operating_point"] = decisions(compare, [z > point for z, point in zip(raw, points, strict=True)])
    others["raw"], others["calibrated"] = probabilities(compare, raw), probabilities(compare, calibrated)
    pooled = [rows["score"].to_numpy() for rows in patients]
    others["per_patient"] = compared(patients[0], "auroc", auroc, pooled, params=params, stratify=True)
    adjust(claimed)
    adjust(others)
    for phase in ("raw", "calibrated"):
        others[phase] |= claimed.pop(phase)
    found = claimed | others
    found["ranks_better"] = better(found, "auroc_difference", larger=first, smaller=second)
    found["calibrates_better"] = {
        phase: better(found[phase], "logistic_miscalibration_difference", larger=second, smaller=first)
        for phase in ("raw", "calibrated")
    }
    return found


def compared(
    rows: pd.DataFrame,
    name: str,
    metric: Any,
    pair: list[np.ndarray],
    *,
    params: DiversityParams,
    only: int | None = None,
    stratify: bool = False,
    **printed: Any,
) -> dict[str, Any]:
    """One difference over these rows, or those of one class only, with its interval and p-value.

    Each starts from the same seed: all differences over the same rows see the same resamples.
    """
    here = np.ones(len(rows), dtype=bool) if only is None else rows["y_true"].to_numpy() == only
    y_true, groups = (rows[column].to_numpy()[here] for column in ("y_true", "patient_id"))
    return figure(
        f"{name}_difference",
        partial(difference, metric),
        y_true,
        *(values[here] for values in pair),
        groups=groups,
        stratify=y_true if stratify else None,
        n_resamples=params.resamples,
        rng=np.random.default_rng(params.seed),
        **{"null": 0.0, **printed},
    )


def decisions(compare: Any, pair: list[np.ndarray]) -> dict[str, Any]:
    """Differences of two decisions."""
    return (
        compare("accuracy", accuracy, pair)
        | compare("sensitivity", sensitivity, pair, only=1)
        | compare("specificity", specificity, pair, only=0)
    )


def probabilities(compare: Any, logits: list[np.ndarray]) -> dict[str, Any]:
    """Differences of two probabilities and of the decisions at p > 0.5."""
    probs = [expit(logit) for logit in logits]
    found = decisions(compare, [prob > 0.5 for prob in probs])
    found |= compare("nll", negative_log_likelihood, logits) | compare("brier_score", brier_score, probs)
    found |= compare("ece", expected_calibration_error, probs, interval=False, null=None)
    return found | {"ece_difference_interval_absent": UNTESTED}


def better(found: dict[str, Any], name: str, *, larger: str, smaller: str) -> str:
    """Whom a difference speaks for: `larger` above 0, `smaller` below, `undecided` where its test does not reject."""
    if found.get(f"{name}_p_value_holm", 1.0) > LEVEL:
        return "undecided"
    return larger if found[name] > 0 else smaller


def claim(found: dict[str, Any], first: str, second: str) -> str:
    """The reference study's sentence on its raw networks, put to these two, and what the tests say of it."""
    ranks, calibrates = found["ranks_better"], found["calibrates_better"]
    if (ranks, calibrates["raw"]) == (second, first):
        verdict = "supported"
    elif ranks == first or calibrates["raw"] == second:
        verdict = "contradicted"
    else:
        verdict = "not supported"
    return (
        f"{second} ranks better, {first} is better calibrated: {verdict}. Differences, {first} minus {second}: "
        f"AUROC {told(found, 'auroc_difference', ranks)}; what a wrong shift and slope cost, in nats a case, "
        f"raw {told(found['raw'], 'logistic_miscalibration_difference', calibrates['raw'])}; "
        f"calibrated {told(found['calibrated'], 'logistic_miscalibration_difference', calibrates['calibrated'])}. "
        "p by Holm over these; one training of each."
    )


def told(found: dict[str, Any], name: str, verdict: str) -> str:
    """A difference in words, with its interval, p-value and verdict."""
    if f"{name}_absent" in found:
        return f"not computed ({found[f'{name}_absent']})"
    low, high, p_value = (found[f"{name}_{key}"] for key in ("low", "high", "p_value_holm"))
    ending = verdict if verdict == "undecided" else f"{verdict} is better"
    return f"{found[name]:+.3f} ({low:+.3f} to {high:+.3f}, p = {p_value:.2g}: {ending})"

"""The answers to: how well does a network read unseen images, and does a second one err on different ones?"""

from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit
from sklearn.metrics import precision_recall_curve, roc_curve

from tmv_lib.calibration.errors import expected_calibration_error
from tmv_lib.pipeline.params import Params, Resamples, Seed
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
from tmv_lib.statistics.estimate import Estimate, Resampler, adjust, curve, difference, mean
from tmv_lib.statistics.ranking import auroc, average_precision
from tmv_lib.statistics.tests import delong_test, mcnemar_exact

LEVEL = 0.05  # of the tests, after Holm
CELLS = ("true_negative", "false_positive", "false_negative", "true_positive")
UNTESTED = "resampling raises the ECE of two models unequally: neither interval nor test would hold"


class ReadingParams(Params):
    """sensitivity: that the operating point reaches on validation."""

    sensitivity: Annotated[float, Field(gt=0, lt=1)]
    resamples: Resamples
    seed: Seed


Pair = dict[str, pd.DataFrame]  # the rows of both members, by name


def of_member(cases: pd.DataFrame, name: str) -> pd.DataFrame:
    """One member's cases: `patient_id`, `split`, `y_true`, its own `score` and the calibrated `logit`."""
    own = {f"score_{name}": "score", f"logit_{name}": "logit"}
    return cases[["image_id", "patient_id", "split", "y_true", *own]].rename(columns=own)


def performance(cases: pd.DataFrame, params: ReadingParams) -> dict[str, Any]:
    """How well one model reads the test cases, per image and, under `per_patient`, per patient.

    cases: as `of_member` gives them. Ranking by the score; decisions at calibrated p > 0.5, and at the operating point
    whose sensitivity on val is the one wanted, for images and patients each its own. Every figure with its interval.
    """
    val, test = (cases[cases["split"] == split] for split in ("val", "test"))
    images, patients = _read(val, test, params), _read(by_patient(val), by_patient(test), params)
    return images | {"per_patient": patients}


def by_patient(cases: pd.DataFrame) -> pd.DataFrame:
    """A row per patient from a row per image: `y_true`, `score`, `logit`, `patient_id` as `per_patient` pools them."""
    of_score, of_logit = (per_patient(cases["y_true"], cases[z], cases["patient_id"]) for z in ("score", "logit"))
    return pd.DataFrame({**of_logit._asdict(), "score": of_score.logit})


def _read(val: pd.DataFrame, test: pd.DataFrame, params: ReadingParams) -> dict[str, Any]:
    y_true, score, logit = (test[name].to_numpy() for name in ("y_true", "score", "logit"))
    resampler = Resampler(test["patient_id"].to_numpy(), params.resamples, params.seed)
    figures: dict[str, Any] = resampler.counts(y_true) | {
        "auroc": resampler.estimate(auroc, y_true, score, stratify=y_true),
        "average_precision": resampler.estimate(average_precision, y_true, score),
        "brier_score": resampler.estimate(brier_score, y_true, expit(logit)),
        "nll": resampler.estimate(negative_log_likelihood, y_true, logit),
    }
    threshold = operating_point(val["y_true"], val["score"], sensitivity=params.sensitivity)
    for name, positive in (("at_half", expit(logit) > 0.5), ("at_operating_point", score > threshold)):
        y_pred = positive.astype(int)
        figures[name] = dict(zip(CELLS, confusion_counts(y_true, y_pred))) | {
            "accuracy": resampler.estimate(accuracy, y_true, y_pred),
            "f1_score": resampler.estimate(f1_score, y_true, y_pred),
            **resampler.by_class(y_true, y_pred),
        }
    return figures


def roc(name: str, test: pd.DataFrame) -> pd.DataFrame:
    """The ROC curve of one member's test cases, as rows to draw."""
    false_positive_rate, true_positive_rate, _ = roc_curve(test["y_true"], test["score"])
    return curve(name, false_positive_rate=false_positive_rate, sensitivity=true_positive_rate)


def precision_recall(name: str, test: pd.DataFrame) -> pd.DataFrame:
    """The precision-recall curve of one member's test cases, as rows to draw."""
    precision, recall, _ = precision_recall_curve(test["y_true"], test["score"])
    return curve(name, sensitivity=recall, precision=precision)


def together(pair: Pair, params: ReadingParams) -> dict[str, Any]:
    """Both members on the same cases: whose errors are whose, every difference tested, and who is better."""
    val, test = ({name: rows[rows["split"] == split] for name, rows in pair.items()} for split in ("val", "test"))
    return shared_errors(test, params) | differences(val, test, params)


def shared_errors(test: Pair, params: ReadingParams) -> dict[str, Any]:
    """Whose errors are whose, deciding at calibrated p > 0.5, and the two tests that take images as independent."""
    rows, *_ = test.values()
    y_true = rows["y_true"].to_numpy()
    decisions = [expit(rows["logit"].to_numpy()) > 0.5 for rows in test.values()]
    wrong = [decision != y_true for decision in decisions]
    both_right, only_second, only_first, double_fault = confusion_counts(*wrong)
    differ = decisions[0] != decisions[1]
    resampler = Resampler(rows["patient_id"].to_numpy(), params.resamples, params.seed)
    figures: dict[str, Any] = {
        "disagreement": int(differ.sum()),
        "both_right": both_right,
        "only_first_wrong": only_first,
        "only_second_wrong": only_second,
        "double_fault": double_fault,
        "mcnemar_p_value": mcnemar_exact(only_first, only_second),
    }
    try:
        figures["delong"] = delong_test(y_true, *(rows["score"] for rows in test.values()))._asdict()
    except ValueError as error:
        figures["delong"] = Estimate(absent=str(error))
    return figures | {"disagreement_rate": resampler.estimate(mean, differ.astype(float))}


def differences(val: Pair, test: Pair, params: ReadingParams) -> dict[str, Any]:
    """Every figure of the first member minus that of the second, tested; and who is better.

    Holm's adjustment over the tests of the claim (AUROC; miscalibration, raw and calibrated), and over all others; what
    calibration leaves as it was is one test, not two. Miscalibration says who is better calibrated: unlike NLL and
    Brier score it has nothing to do with ranking, and unlike that of ECE its difference is not biased.
    """
    first, second = test
    points = [operating_point(rows["y_true"], rows["score"], sensitivity=params.sensitivity) for rows in val.values()]
    raw, calibrated = ([rows[name].to_numpy() for rows in test.values()] for name in ("score", "logit"))
    patients = [by_patient(rows) for rows in test.values()]
    compare, compare_patients = (partial(_compare, rows, params) for rows in (test[first], patients[0]))
    key = "logistic_miscalibration_difference"

    claim: dict[str, Any] = {
        "auroc_difference": compare(auroc, raw, stratify=True),
        "raw": {key: compare(logistic_miscalibration, raw)},
        "calibrated": {key: compare(logistic_miscalibration, calibrated)},
    }
    others: dict[str, Any] = {
        "average_precision_difference": compare(average_precision, raw),
        "at_operating_point": _decisions(compare, [z > point for z, point in zip(raw, points, strict=True)]),
        "raw": _probabilities(compare, raw),
        "calibrated": _probabilities(compare, calibrated),
        "per_patient": {
            "auroc_difference": compare_patients(auroc, [rows["score"].to_numpy() for rows in patients], stratify=True)
        },
    }
    adjust(claim)
    adjust(others)
    ranks = better(claim["auroc_difference"], larger=first, smaller=second)
    calibrates = {}
    for phase in ("raw", "calibrated"):
        calibrates[phase] = better(claim[phase][key], larger=second, smaller=first)
        others[phase] |= claim.pop(phase)
    return claim | others | {"ranks_better": ranks, "calibrates_better": calibrates}


def _compare(
    rows: pd.DataFrame,
    params: ReadingParams,
    metric: Any,
    pair: list[np.ndarray],
    *,
    only: int | None = None,
    stratify: bool = False,
    **options: Any,
) -> Estimate:
    """One difference over these rows, or those of one class only, with its interval and p-value."""
    here = np.ones(len(rows), dtype=bool) if only is None else rows["y_true"].to_numpy() == only
    y_true, groups = (rows[column].to_numpy()[here] for column in ("y_true", "patient_id"))
    resampler = Resampler(groups, params.resamples, params.seed)
    values = (values[here] for values in pair)
    options = {"null": 0.0, "stratify": y_true if stratify else None, **options}
    return resampler.estimate(partial(difference, metric), y_true, *values, **options)


def _decisions(compare: Any, pair: list[np.ndarray]) -> dict[str, Estimate]:
    """Differences of two decisions."""
    return {
        "accuracy_difference": compare(accuracy, pair),
        "sensitivity_difference": compare(sensitivity, pair, only=1),
        "specificity_difference": compare(specificity, pair, only=0),
    }


def _probabilities(compare: Any, logits: list[np.ndarray]) -> dict[str, Estimate]:
    """Differences of two probabilities and of the decisions at p > 0.5."""
    probs = [expit(logit) for logit in logits]
    ece = compare(expected_calibration_error, probs, interval=False, null=None)
    return _decisions(compare, [prob > 0.5 for prob in probs]) | {
        "nll_difference": compare(negative_log_likelihood, logits),
        "brier_score_difference": compare(brier_score, probs),
        "ece_difference": Estimate(ece.value, absent=ece.absent, interval_absent=UNTESTED),
    }


def better(estimate: Estimate, *, larger: str, smaller: str) -> str:
    """Whom a difference speaks for: `larger` above 0, `smaller` below, `undecided` where its test does not reject."""
    if estimate.value is None or estimate.p_value_holm is None or estimate.p_value_holm > LEVEL:
        return "undecided"
    return larger if estimate.value > 0 else smaller


def claim(figures: dict[str, Any], first: str, second: str) -> str:
    """What the tests say of the reference study's sentence on its raw networks, put to these two.

    "The second ranks better, the first is better calibrated": `supported`, `contradicted` or `not_supported`.
    """
    ranks, calibrates = figures["ranks_better"], figures["calibrates_better"]["raw"]
    if (ranks, calibrates) == (second, first):
        return "supported"
    return "contradicted" if ranks == first or calibrates == second else "not_supported"

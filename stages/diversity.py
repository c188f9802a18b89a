"""Does ResNet-50 err on different images?"""

from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.special import expit
from sklearn.metrics import roc_curve

from tmv_lib.calibration import expected_calibration_error
from tmv_lib.classification import (
    accuracy,
    brier_score,
    logistic_miscalibration,
    negative_log_likelihood,
    operating_point,
    sensitivity,
    specificity,
)
from tmv_lib.files import join, read_csv, write_csv, write_metrics
from tmv_lib.params import Params, named_members, read
from tmv_lib.reporting import adjust, by_patient, curve, difference, figure, mean, performance
from tmv_lib.stage import run
from tmv_lib.statistics import auroc, average_precision, delong_test, mcnemar_exact

LEVEL = 0.05  # of the tests, after Holm
UNTESTED = "resampling raises the ECE of two models unequally: neither interval nor test would hold"


class DiversityParams(Params):
    sensitivity: Annotated[float, Field(gt=0, lt=1)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


def main() -> None:
    params = read("params.yaml", "diversity", DiversityParams)
    first, second = list(named_members("params.yaml"))[:2]
    cases = {first: read_member(first)}
    cases[second] = join(cases[first][["image_id"]], read_member(second))
    val, test = ({name: rows[rows["split"] == split] for name, rows in cases.items()} for split in ("val", "test"))

    rng = np.random.default_rng(params.seed)
    own = performance(val[second], test[second], sensitivity=params.sensitivity, n_resamples=params.resamples, rng=rng)
    both = errors(test, params) | differences(val, test, params)
    metrics = {"first": first, "second": second, "claim": claim(both, first, second), second: own, "together": both}
    curves = []
    for member, rows in test.items():
        false_positive_rate, true_positive_rate, _ = roc_curve(rows["y_true"], rows["score"])
        curves.append(curve(member, false_positive_rate=false_positive_rate, sensitivity=true_positive_rate))
    write_csv("plots/diversity/roc.csv", pd.concat(curves), digits=6)
    write_metrics("metrics/diversity.json", {"diversity": metrics})


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


if __name__ == "__main__":
    run(main)

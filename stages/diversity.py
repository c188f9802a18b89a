"""Does ResNet-50 err on different images?"""

from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from sklearn.metrics import roc_curve

from tmv_lib.calibration import expected_calibration_error
from tmv_lib.classification import accuracy, negative_log_likelihood, operating_point
from tmv_lib.files import join, read_csv, write_csv, write_metrics
from tmv_lib.params import Params, read, read_members
from tmv_lib.reporting import curve, figure, mean, performance
from tmv_lib.stage import run
from tmv_lib.statistics import auroc, delong_test, mcnemar_exact


class DiversityParams(Params):
    sensitivity: Annotated[float, Field(gt=0, lt=1)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


def main() -> None:
    params = read("params.yaml", "diversity", DiversityParams)
    first, second = list(read_members("params.yaml"))[:2]
    calibrated = [f"{name}_{member}" for member in (first, second) for name in ("y_prob", "logit")]
    cases = join(
        read_csv(f"data/train/{first}/predictions.csv", ["image_id", "patient_id", "split", "y_true"]),
        read_csv("data/calibration/cases.csv", ["image_id", *calibrated]),
        *(raw_logit(member) for member in (first, second)),
    )
    val, test = (cases[cases["split"] == split] for split in ("val", "test"))
    rng = np.random.default_rng(params.seed)
    found = performance(
        test["y_true"].to_numpy(),
        test[f"raw_{second}"].to_numpy(),
        test[f"y_prob_{second}"].to_numpy(),
        operating_point=operating_point(val["y_true"], val[f"raw_{second}"], sensitivity=params.sensitivity),
        groups=test["patient_id"].to_numpy(),
        n_resamples=params.resamples,
        rng=rng,
    )
    metrics = {"first": first, "second": second, second: found, "together": together(test, first, second, params, rng)}
    curves = []
    for member in (first, second):
        false_positive_rate, sensitivity, _ = roc_curve(test["y_true"], test[f"raw_{member}"])
        curves.append(curve(member, false_positive_rate=false_positive_rate, sensitivity=sensitivity))
    write_csv("plots/diversity/roc.csv", pd.concat(curves))
    write_metrics("metrics/diversity.json", {"diversity": metrics})


def raw_logit(member: str) -> pd.DataFrame:
    """What the network said before calibration."""
    predictions = read_csv(f"data/train/{member}/predictions.csv", ["image_id", "logit"])
    return predictions.rename(columns={"logit": f"raw_{member}"})


def together(
    test: pd.DataFrame, first: str, second: str, params: DiversityParams, rng: np.random.Generator
) -> dict[str, Any]:
    """The two members on the same cases: whose errors are whose, who ranks and who calibrates better."""
    y_true, groups = test["y_true"].to_numpy(), test["patient_id"].to_numpy()
    raw = [test[f"raw_{member}"].to_numpy() for member in (first, second)]
    probs = [test[f"y_prob_{member}"].to_numpy() for member in (first, second)]
    logits = [test[f"logit_{member}"].to_numpy() for member in (first, second)]
    decided = [(prob > 0.5).astype(int) for prob in probs]
    wrong = [decision != y_true for decision in decided]
    differ = decided[0] != decided[1]
    delong = delong_test(y_true, *raw)
    only_first, only_second = int((wrong[0] & ~wrong[1]).sum()), int((wrong[1] & ~wrong[0]).sum())
    found: dict[str, Any] = {
        "disagreement": int(differ.sum()),
        "both_right": int((~wrong[0] & ~wrong[1]).sum()),
        "only_first_wrong": only_first,
        "only_second_wrong": only_second,
        "double_fault": int((wrong[0] & wrong[1]).sum()),
        "mcnemar_p_value": mcnemar_exact(only_first, only_second),
        "delong": delong._asdict(),
    }
    resampled = partial(figure, groups=groups, stratify=y_true, n_resamples=params.resamples, rng=rng)
    found |= resampled("disagreement_rate", mean, differ.astype(float))
    for name, metric, pair in (
        ("auroc", auroc, raw),
        ("accuracy", accuracy, decided),
        ("ece", expected_calibration_error, probs),
        ("nll", negative_log_likelihood, logits),
    ):
        found |= resampled(f"{name}_difference", partial(difference, metric), y_true, *pair)
    found["ranks_better"] = verdict(found, "auroc_difference", larger=first, smaller=second)
    found["calibrates_better"] = verdict(found, "ece_difference", larger=second, smaller=first)
    return found


def difference(metric: Any, y_true: np.ndarray, first: Any, second: Any, *, weights: Any = None) -> Any:
    """Paired difference of one metric, first minus second."""
    return metric(y_true, first, weights=weights) - metric(y_true, second, weights=weights)


def verdict(found: dict[str, Any], name: str, *, larger: str, smaller: str) -> str:
    """Whom a difference speaks for, `larger` above 0 and `smaller` below; `undecided` where its interval holds 0."""
    if f"{name}_absent" in found or found[f"{name}_low"] <= 0 <= found[f"{name}_high"]:
        return "undecided"
    return larger if found[name] > 0 else smaller


if __name__ == "__main__":
    run(main)

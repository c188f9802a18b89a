"""How well does DenseNet-121 read unseen images?"""

from typing import Annotated

import numpy as np
from pydantic import Field
from sklearn.metrics import precision_recall_curve, roc_curve

from tmv_lib.classification import operating_point
from tmv_lib.files import join, read_csv, write_csv, write_metrics
from tmv_lib.params import Params, read, read_members
from tmv_lib.reporting import curve, performance
from tmv_lib.stage import run


class BaselineParams(Params):
    sensitivity: Annotated[float, Field(gt=0, lt=1)]
    resamples: Annotated[int, Field(ge=100)]
    seed: Annotated[int, Field(ge=0)]


def main() -> None:
    params = read("params.yaml", "baseline", BaselineParams)
    member = next(iter(read_members("params.yaml")))  # the first member is the baseline
    predictions = read_csv(
        f"data/train/{member}/predictions.csv", ["image_id", "patient_id", "split", "y_true", "logit"]
    )
    calibrated = read_csv("data/calibration/cases.csv", ["image_id", f"y_prob_{member}"])
    cases = join(predictions, calibrated)
    val, test = (cases[cases["split"] == split] for split in ("val", "test"))
    y_true, score = test["y_true"].to_numpy(), test["logit"].to_numpy()

    threshold = operating_point(val["y_true"], val["logit"], sensitivity=params.sensitivity)
    found = performance(
        y_true,
        score,
        test[f"y_prob_{member}"].to_numpy(),
        operating_point=threshold,
        groups=test["patient_id"].to_numpy(),
        n_resamples=params.resamples,
        rng=np.random.default_rng(params.seed),
    )
    false_positive_rate, sensitivity, _ = roc_curve(y_true, score)
    precision, recall, _ = precision_recall_curve(y_true, score)
    roc = curve(member, false_positive_rate=false_positive_rate, sensitivity=sensitivity)
    write_csv("plots/baseline/roc.csv", roc)
    write_csv("plots/baseline/precision_recall.csv", curve(member, sensitivity=recall, precision=precision))
    write_metrics("metrics/baseline.json", {"baseline": {"member": member, **found}})


if __name__ == "__main__":
    run(main)

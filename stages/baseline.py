"""How well does DenseNet-121 read unseen images?"""

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from tmv_lib.pipeline.files import join, read_csv, write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import named_members, read
from tmv_lib.pipeline.stage import run
from tmv_lib.reading.answer import BaselineParams, performance
from tmv_lib.statistics.estimate import curve


def main() -> None:
    params = read("params.yaml", "baseline", BaselineParams)
    member = next(iter(named_members("params.yaml")))  # the first member is the baseline
    columns = ["image_id", "patient_id", "split", "y_true", "logit"]
    predictions = read_csv(f"data/train/{member}/predictions.csv", columns).rename(columns={"logit": "score"})
    calibrated = read_csv("data/calibration/cases.csv", ["image_id", f"logit_{member}"])
    cases = join(predictions, calibrated.rename(columns={f"logit_{member}": "logit"}))
    val, test = (cases[cases["split"] == split] for split in ("val", "test"))

    rng = np.random.default_rng(params.seed)
    found = performance(val, test, sensitivity=params.sensitivity, n_resamples=params.resamples, rng=rng)
    y_true, score = test["y_true"], test["score"]
    false_positive_rate, sensitivity, _ = roc_curve(y_true, score)
    precision, recall, _ = precision_recall_curve(y_true, score)
    roc = curve(member, false_positive_rate=false_positive_rate, sensitivity=sensitivity)
    write_csv("plots/baseline/roc.csv", roc, digits=6)
    write_csv("plots/baseline/precision_recall.csv", curve(member, sensitivity=recall, precision=precision), digits=6)
    write_metrics("metrics/baseline.json", {"baseline": {"member": member, **found}})


if __name__ == "__main__":
    run(main)

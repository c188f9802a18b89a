"""Does ResNet-50 err on different images?"""

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from tmv_lib.pipeline.files import join, write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import named_members, read
from tmv_lib.pipeline.stage import run
from tmv_lib.reading.answer import DiversityParams, claim, differences, errors, performance, read_member
from tmv_lib.statistics.estimate import curve


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


if __name__ == "__main__":
    run(main)

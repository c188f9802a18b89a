"""What kinds of mistakes are these, and what does each need?"""

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from tmv_lib.failures import taxonomy
from tmv_lib.failures.answer import (
    NO_SITE,
    SITE,
    FailuresParams,
    adjudicated,
    against_oracle,
    answers,
    confusion,
    counted,
    draw,
    gather,
    oracle,
    queues,
    sorted_errors,
    subgroups,
    told_by_signals,
)
from tmv_lib.pipeline.files import read_csv, write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import read, read_members
from tmv_lib.pipeline.record import read_calibrations
from tmv_lib.pipeline.stage import run


def main() -> None:
    params = read("params.yaml", "failures", FailuresParams)
    members = list(read_members("params.yaml"))
    rng = np.random.default_rng(params.seed)
    everything = read_csv("data/prepare/cases.csv", ["image_id", "patient_id", "split", "y_true", "source"])
    images = np.load("data/prepare/images.npy", mmap_mode="r")
    phantom = set(everything["source"]) == {"phantom"}
    cases, joint = gather(everything, images, members, params, rng)
    logits = read_calibrations(cases, members, site=SITE)
    columns = {name: answers(cases, expit(of_column.to_numpy()), members) for name, of_column in logits.items()}
    evidence = columns["as_shipped"]
    if phantom:
        evidence["cause"] = oracle(evidence, members)
    errors = {name: sorted_errors(of_column) for name, of_column in columns.items()}
    shipped = errors["as_shipped"]

    metrics: dict[str, Any] = {}
    plotted = []
    for model in [*members, "ensemble"]:
        of_model = evidence[(evidence["model"] == model) & (evidence["split"] == "test")]
        metrics[model], drawn = counted(shipped[shipped["model"] == model], of_model, params, rng)
        plotted.append(drawn.assign(series=model))
        metrics[model] |= {name: taxonomy.tally(found[found["model"] == model]) for name, found in errors.items()}
    if len(errors) == 1:
        metrics["site_calibrated_absent"] = NO_SITE
    metrics["ensemble"]["subgroups"] = subgroups(evidence, params, rng)
    # Said, because it is the one figure for which labels of the test split are learned from.
    metrics["out_of_fold_heads"] = "fitted on val, cal and test labels of other patients"
    metrics["confident_joint"] = {f"given {i} found {j}": int(joint[i, j]) for i in (0, 1) for j in (0, 1)}
    if params.adjudication is not None:
        metrics["adjudication"] = adjudicated(shipped, params.adjudication)
    result: dict[str, Any] = {"failures": metrics}
    if phantom:
        result["taxonomy"] = against_oracle(shipped, params, rng) | told_by_signals(evidence, params, rng)
    write_csv("data/failures/evidence.csv", evidence)
    write_csv("data/failures/errors.csv", shipped)
    for kind, queue in queues(shipped).items():
        write_csv(f"data/failures/queues/{taxonomy.QUEUES[kind]}.csv", queue)
    write_csv("plots/failures/shares.csv", pd.concat(plotted), digits=6)
    write_csv("plots/failures/confusion.csv", confusion(shipped), digits=6)
    draw(shipped, everything, images, members)
    write_metrics("metrics/failures.json", result)


if __name__ == "__main__":
    run(main)

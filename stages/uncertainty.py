"""Which doubts are genuine, and which errors are confident?"""

import numpy as np
import pandas as pd

from tmv_lib.calibration.calibrators import read_calibrators
from tmv_lib.pipeline import record
from tmv_lib.pipeline.files import naming, write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import Member, named_members, read
from tmv_lib.pipeline.stage import run
from tmv_lib.uncertainty.answer import Network, UncertaintyParams, between_members, doubt, worst_first
from tmv_lib.uncertainty.out_of_distribution import write_pixel_detectors
from tmv_lib.uncertainty.refusal import find_unlike, nothing_measured, shares_refused


def main() -> None:
    params, members = read("params.yaml", "uncertainty", UncertaintyParams), named_members("params.yaml")
    everything = record.read_cases(members, further=["source", *record.cause_column()])
    train, cases = record.reference_cases(everything), record.outside_train(everything)
    between = between_members(cases[[f"y_prob_{name}" for name in members]].to_numpy().T)
    calibrators = read_calibrators(record.CALIBRATORS)
    answers = {}
    for name, member in members.items():
        network = None if member is None else read_network(name, member, train, cases)
        answers[name] = doubt(cases, name, between, network, calibrators[name], params)

    signals = [one.signals.add_suffix(f"_{name}") for name, one in answers.items()]
    foreign = {name: one.foreign for name, one in answers.items() if one.foreign is not None}
    unlike = nothing_measured(cases)
    if foreign:
        images = {"train": record.read_images(train["image_id"]), "cases": record.read_images(cases["image_id"])}
        images["foreign"] = np.load("data/prepare/foreign.npy")
        with naming(record.CASES):
            unlike = find_unlike(cases, pd.concat(signals, axis=1), foreign, images, params)
    if unlike.pixels is not None:
        write_pixel_detectors("data/uncertainty/pixels.npz", unlike.pixels)
        write_csv("data/uncertainty/usual.csv", unlike.usual)
    write_csv("data/uncertainty/cases.csv", pd.concat([cases[["image_id"]], between, *signals, unlike.columns], axis=1))
    tests = pd.concat(one.test.assign(member=name) for name, one in answers.items())
    write_csv("data/uncertainty/quadrants.csv", worst_first(tests))
    none = pd.DataFrame(columns=["passes", "value", "series"])
    curves = [one.plots.get("convergence", none) for one in answers.values()]
    write_csv("plots/uncertainty/convergence.csv", pd.concat(curves), digits=6)
    rows = [of.assign(series=name + of["series"]) for name, one in answers.items() for of in [one.plots["detectors"]]]
    write_csv("plots/uncertainty/detectors.csv", pd.concat(rows), digits=6)
    write_csv("plots/uncertainty/out_of_distribution.csv", shares_refused(unlike.metrics), digits=6)
    metrics = {name: one.metrics for name, one in answers.items()}
    write_metrics("uncertainty", {"uncertainty": metrics, "out_of_distribution": unlike.metrics})


def read_network(name: str, member: Member, train: pd.DataFrame, cases: pd.DataFrame) -> Network:
    """What `train` and `stability` left of one member's network."""
    own, reference = (record.read_features(name, rows["image_id"]) for rows in (cases, train))
    changed, y_true = record.read_changed(name, cases["image_id"]), train["y_true"].to_numpy()
    return Network(own, reference, y_true, record.read_head(name), member.dropout, changed, *record.read_foreign(name))


if __name__ == "__main__":
    run(main)

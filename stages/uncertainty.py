"""Which doubts are genuine, and which errors are confident?"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from tmv_lib.calibration import calibrators
from tmv_lib.pipeline.files import write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import named_members, read
from tmv_lib.pipeline.stage import run
from tmv_lib.uncertainty.answer import (
    NO_NETWORK,
    UncertaintyParams,
    augmented,
    away_from_training,
    between_members,
    decided,
    doubts,
    head_dropout,
    judge,
    margin,
    out_of_training,
    quadrants,
    read_cases,
    refused,
    worst_first,
)


def main() -> None:
    params = read("params.yaml", "uncertainty", UncertaintyParams)
    members = named_members("params.yaml")
    rng = np.random.default_rng(params.seed)
    everything = read_cases(list(members))
    later = everything[everything["split"] != "train"].reset_index(drop=True)
    between = between_members(later[[f"y_prob_{name}" for name in members]].to_numpy().T)
    signals, convergence, detectors, sorted_cases = [later[["image_id"]], between], [], [], []
    errors: dict[str, Any] = {}
    foreign: dict[str, pd.DataFrame] = {}
    disputed = [*between] if len(members) > 1 else []
    for name, member in members.items():
        if member is None:
            cases = decided(later, name, params).join(between)
            errors[name], found = judge(cases[cases["split"] == "test"], ["margin", *disputed], params, rng)
            errors[name] |= {"dropout_absent": NO_NETWORK, "quadrants": quadrants(cases, params, rng)}
            signals.append(
                later[[]].assign(**{f"{kind}_{name}": np.nan for kind in ("mutual_information", "distance")})
            )
            detectors.append(found.assign(series=name + found["series"]))
            sorted_cases.append(cases[cases["split"] == "test"].assign(member=name))
            continue
        calibrate = partial(
            calibrators.recalibrated, raw=expit(everything[f"raw_{name}"]), calibrated=everything[f"y_prob_{name}"]
        )
        dropped, curve = head_dropout(name, later, member.dropout, params)
        distances, strange = away_from_training(name, everything, params)
        own = doubts(dropped, augmented(name, later), calibrate=calibrate).join(distances)
        cases = decided(later, name, params).join([own, between])
        test = cases[cases["split"] == "test"]

        errors[name], found = judge(test, ["margin", *own, *disputed], params, rng)
        errors[name]["quadrants"] = quadrants(cases, params, rng)
        sure = 1 - margin(calibrate(expit(strange["logit"]))) >= params.confident
        foreign[name] = strange.assign(confident=sure)

        signals.append(own.add_suffix(f"_{name}"))
        convergence.append(curve)
        detectors.append(found.assign(series=name + found["series"]))
        sorted_cases.append(test.assign(member=name))
    unlike, strangers = out_of_training(everything, pd.concat(signals, axis=1), foreign, params)
    write_csv("data/uncertainty/cases.csv", pd.concat([*signals, unlike], axis=1))
    write_csv("data/uncertainty/quadrants.csv", worst_first(pd.concat(sorted_cases)))
    write_csv(
        "plots/uncertainty/convergence.csv",
        pd.concat(convergence or [pd.DataFrame(columns=["passes", "value", "series"])]),
        digits=6,
    )
    write_csv("plots/uncertainty/detectors.csv", pd.concat(detectors), digits=6)
    write_csv("plots/uncertainty/out_of_distribution.csv", refused(strangers), digits=6)
    write_metrics("metrics/uncertainty.json", {"uncertainty": errors, "out_of_distribution": strangers})


if __name__ == "__main__":
    run(main)

"""Is the place where it is used like the place it learned from?"""

import json
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from tmv_lib.pipeline.files import whole, write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import named_members, read
from tmv_lib.pipeline.stage import run
from tmv_lib.site.answer import (
    SiteParams,
    blamed,
    blocks,
    bought,
    certificate,
    correct,
    differing_columns,
    distributions,
    gather,
    interaction,
    known_patients,
    learn,
    prevalence,
    reliability,
    shifted,
    three_columns,
    together,
)
from tmv_lib.site.learning_curve import bands
from tmv_lib.site.shift import WORDS


def main() -> None:
    params = read("params.yaml", "site", SiteParams)
    members = list(named_members("params.yaml"))
    rng = np.random.default_rng(params.seed)
    cases = gather(members, params)
    test = cases[cases["split"] == "test"]
    # labels of the site: its own split where it sent one, otherwise the test cases, each judged by the others
    sent = cases[cases["split"] == "local"]
    judging = sent["patient_id"].isin(test["patient_id"])
    local = test if judging.all() else sent[~judging]
    at_site = set(local["patient_id"]) | set(test["patient_id"])
    source = cases[cases["split"].isin(["val", "cal"]) & ~cases["patient_id"].isin(at_site)]
    for split in ("val", "cal"):
        if split not in set(source["split"]):
            raise ValueError(f"data/prepare/cases.csv: every patient of {split} is one of the site: no source is left")

    shift, name = shifted(source, local, members, params, rng)
    metrics: dict[str, Any] = {"labels_from": "test" if local is test else "local", "shift": shift}
    if judging.any():
        metrics["local_patients_left_out"] = int(sent.loc[judging, "patient_id"].nunique())
    metrics["shift"] |= known_patients(at_site)
    metrics["shift"]["columns"] = differing_columns(source["image_id"], local["image_id"], params, rng)
    metrics["shift"]["id_blocks"] = blocks(name)
    metrics["prevalence"] = prevalence(source, local, test, members[0], name, params, rng)
    logits = cases.set_index("image_id")[[]]
    for member in tqdm(members, desc="calibrated at the site"):
        shipped = cases.set_index("image_id")[f"logit_{member}"]
        logits[f"site_logit_{member}"], logits[f"ceiling_logit_{member}"] = shipped, shipped
        metrics[member] = three_columns(local, test, member, logits, params, rng)
        metrics[member]["interaction"] = interaction(source, local, member, params, rng)
    correct({member: metrics[member]["interaction"] for member in members})
    for member in members:
        metrics[member]["interaction"] |= blamed(metrics[member]["interaction"], metrics[member]["update"]["name"])
    metrics["ensemble"] = together(test, members, logits)
    try:
        learned = learn(local, test, source, members[0], params, rng)
        banded = bands(learned)
        metrics["learning_curve"] = bought(learned, banded)
    except ValueError as error:
        banded = pd.DataFrame(columns=["measure", "n", "median", "low", "high"])
        metrics["learning_curve"] = {"absent": str(error)}
    metrics["certificate"] = certificate(source, local, members[0], params, rng)

    write_csv("data/site/cases.csv", logits.reset_index())
    with whole("data/site/shift.json") as path:
        verdict = {"name": name, "shifted": name != "none", "words": WORDS[name]}
        path.write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")
    write_csv("plots/site/learning_curve.csv", banded, digits=6)
    write_csv("plots/site/reliability.csv", reliability(cases, members, logits), digits=6)
    write_csv("plots/site/logits.csv", distributions(source, local, members[0]), digits=6)
    write_metrics("metrics/site.json", {"site": metrics})


if __name__ == "__main__":
    run(main)

"""Where does it look, and does that depend on what it learned?"""

from typing import Any

import numpy as np
import pandas as pd

from tmv_lib.explanations import regions
from tmv_lib.explanations.answer import (
    ExplanationsParams,
    answer,
    draw_donors,
    most_confident,
    on_test,
    overlays,
    read_material,
)
from tmv_lib.explanations.attribution import AsTrained
from tmv_lib.explanations.sanity import agreement
from tmv_lib.pipeline import pictures
from tmv_lib.pipeline.files import write_csv
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import read, read_members
from tmv_lib.pipeline.stage import run


def main() -> None:
    params = read("params.yaml", "explanations", ExplanationsParams)
    precision = read("params.yaml", "train", AsTrained).precision
    members = read_members("params.yaml")
    if strangers := set(params.layers) - set(members):
        raise ValueError(f"params.yaml: explanations.layers names {sorted(strangers)[0]}, which is no member")
    material = read_material(members)
    cases, rng = material.cases, np.random.default_rng(params.seed)
    chosen = rng.permutation(np.flatnonzero(cases["split"] == "test"))[: params.sanity_cases]
    shown = most_confident(cases, next(iter(members)))
    donors = draw_donors(cases, list(members), seed=params.seed)
    answers = {name: answer(name, members[name], material, donors, chosen, params, precision, rng) for name in members}

    table = cases[["image_id"]]
    for name, found in answers.items():
        table = table.assign(**{f"{key}_{name}": column for key, column in found.columns.items()})
    first, second, *_ = answers.values()
    table = table.assign(map_agreement=agreement(first.maps, second.maps))
    together = regions.Interchanged(*(np.mean(of, axis=0) for of in zip(*(a.interchanged for a in answers.values()))))
    of_ensemble = regions.border_to_blame(together, cases["y_true"].to_numpy())
    table = table.assign(**{f"{kind}_ensemble": column for kind, column in of_ensemble.items()})
    metrics: dict[str, Any] = {name: found.metrics for name, found in answers.items()}
    metrics["map_agreement"] = on_test("rank_correlation", table["map_agreement"].to_numpy(), cases, params, rng)
    for name, found in answers.items():
        misread = (cases[f"y_prob_{name}"] > 0.5) != (cases["y_true"] == 1)
        for column in ("border_misleads", "border_mends"):
            of_errors = np.where(misread, found.columns[column], np.nan)
            metrics[name][f"{column}_of_errors"] = on_test("rate", of_errors, cases, params, rng)

    layers = [{"member": name, "layer": metrics[name]["layer"], "method": params.method} for name in members]
    write_csv("data/explanations/cases.csv", table)
    write_csv("data/explanations/layers.csv", pd.DataFrame(layers))
    write_csv("plots/explanations/sanity.csv", pd.concat(found.sanity for found in answers.values()), digits=6)
    write_csv(
        "plots/explanations/faithfulness.csv", pd.concat(found.faithfulness for found in answers.values()), digits=6
    )
    pictures.save(overlays(material, answers, shown, params), "plots/explanations/overlays.png")
    write_metrics("metrics/explanations.json", {"explanations": metrics})


if __name__ == "__main__":
    run(main)

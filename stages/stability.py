"""Does the reason survive a change that does not matter?"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from tmv_lib.calibration.calibrators import decision_boundary
from tmv_lib.explanations.attribution import Explained
from tmv_lib.pipeline import pictures
from tmv_lib.pipeline.files import write_csv, write_npy
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import read, read_members
from tmv_lib.pipeline.stage import run
from tmv_lib.stability import perturbations, similarity
from tmv_lib.stability.answer import (
    AS_IS,
    UNTRAINED,
    Explain,
    StabilityParams,
    by_change,
    decided,
    errors_found,
    explainer,
    flipped_and_moved,
    gallery,
    per_perturbation,
    read_cases,
    write_rows,
)
from tmv_lib.statistics.estimate import counts


def main() -> None:
    params = read("params.yaml", "stability", StabilityParams)
    members = read_members("params.yaml")
    everything, images = read_cases(members)
    rng, changes = np.random.default_rng(params.seed), perturbations.mild(params.model_dump(), seed=params.seed)
    table, logits, metrics = [everything[["image_id"]]], [], {}
    similar, detectors, crossed = [], [], []
    for name, member in members.items():
        cases, original, untrained = decided(everything, name)
        trained, maps = explainer(name, member, params), list[np.ndarray]()

        def explain(levels: np.ndarray, trained: Explain = trained, maps: list[np.ndarray] = maps) -> Explained:
            seen = trained(levels)
            maps.append(seen.maps)
            return seen

        compared = similarity.stability(
            explain,
            images,
            changes,
            target=cases["target"].to_numpy(),
            threshold=decision_boundary(original.logit, cases["logit"]),
            original=original,
            batch_size=params.batch_size,
            progress=partial(tqdm, desc=f"{name}: perturbed"),
        )
        said = {AS_IS: original, UNTRAINED: untrained} | by_change(compared, maps, changes)
        write_npy(f"data/stability/maps_{name}.npy", np.stack([said[change].maps for change in changes], axis=1))
        ids = cases["image_id"].to_numpy()[compared["case"]]
        logits.append(compared[["perturbation", "logit", "rank_correlation"]].assign(image_id=ids, member=name))
        cases = cases.join(similarity.per_case(compared))
        cases["instability"] = 1 - cases["rank_correlation"]
        kept = ["instability", *similarity.MEASURES[1:], "flipped", "n_undefined"]
        table.append(cases[kept].add_suffix(f"_{name}"))

        found: dict[str, Any] = counts(*(cases.loc[cases["split"] == "test", key] for key in ("y_true", "patient_id")))
        found["perturbations"], drawn = per_perturbation(compared, cases, params, rng)
        similar += [row | {"series": f"{name}{row['series']}"} for row in drawn]
        found["flipped_and_moved"], drawn = flipped_and_moved(cases, params, rng)
        crossed += [row | {"series": name} for row in drawn]
        found["errors"], drawn = errors_found(cases, params, rng)
        detectors += [row | {"series": f"{name}{row['series']}"} for row in drawn]
        metrics[name] = found
        for kind, picture in gallery(images, cases, compared, changes, said, name).items():
            pictures.save(picture, f"plots/stability/gallery/{name}_{kind}.png")
    write_csv("data/stability/cases.csv", pd.concat(table, axis=1))
    columns = ["image_id", "member", "perturbation", "logit", "rank_correlation"]
    write_csv("data/stability/logits.csv", pd.concat(logits)[columns])
    write_rows("similarity", similar, row="perturbation", value="similarity")
    write_rows("flipped_and_moved", crossed, row="cell", value="error_rate")
    write_rows("detectors", detectors, row="measure", value="auroc")
    write_metrics("metrics/stability.json", {"stability": metrics})


if __name__ == "__main__":
    run(main)

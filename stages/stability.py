"""Does the reason survive a change that does not matter?"""

from typing import Any

import numpy as np
import pandas as pd

from tmv_lib.calibration.calibrators import read_calibrators
from tmv_lib.explanations import attribution
from tmv_lib.network.processes import shared
from tmv_lib.pipeline import pictures, record
from tmv_lib.pipeline.files import write_csv, write_npy
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import read, read_members
from tmv_lib.pipeline.stage import run
from tmv_lib.stability.answer import KEPT, PLOTS, StabilityParams, compare, decide
from tmv_lib.stability.gallery import gallery
from tmv_lib.stability.perturbations import mild

LOGITS = ["image_id", "member", "perturbation", "logit", "rank_correlation"]


def main() -> None:
    params, members = read("params.yaml", "stability", StabilityParams), read_members("params.yaml")
    everyone = record.outside_train(record.read_cases(members))
    images, layers = record.read_images(everyone["image_id"]), record.read_layers()
    changes, calibrators = mild(params.model_dump(), seed=params.seed), read_calibrators(record.CALIBRATORS)
    answers, question = {}, record.read_question()
    for name, member in members.items():
        trained = attribution.load_trained(member, record.weights(name), question)
        options: dict[str, Any] = {"batch_size": params.batch_size, **layers[name]}
        explain = attribution.explainer(trained, **options)
        maps, blank_maps = record.read_maps(name)
        own = attribution.Explained(everyone[f"score_{name}"].to_numpy(), maps)
        blank = attribution.Explained(record.read_untrained_logits(name, everyone["image_id"]), blank_maps)
        cases = decide(everyone, name)
        answer = compare(name, cases, images, explain, own, blank, calibrators[name], changes, params)
        stacked = np.stack([answer.explained[change].maps for change in changes], axis=1)
        write_npy(f"data/stability/maps_{name}.npy", stacked)
        pictures.save_all(gallery(name, images, answer, changes).items(), "plots/stability/gallery")
        answers[name] = answer

    signals = [one.cases[KEPT].add_suffix(f"_{name}") for name, one in answers.items()]
    write_csv("data/stability/cases.csv", pd.concat([everyone[["image_id"]], *signals], axis=1))
    ids = everyone["image_id"].to_numpy()
    rows = [one.compared.assign(image_id=ids[one.compared["case"]], member=name) for name, one in answers.items()]
    write_csv("data/stability/logits.csv", pd.concat(rows)[LOGITS])
    for plot, columns in PLOTS.items():
        table = pd.concat(one.plots[plot] for one in answers.values()).reindex(
            columns=["series", *columns, "low", "high"]
        )
        write_csv(f"plots/stability/{plot}.csv", table, digits=6)
    write_metrics("stability", {"stability": {name: one.metrics for name, one in answers.items()}})


if __name__ == "__main__":
    run(shared(main))

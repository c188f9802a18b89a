"""Where does it look, and does that depend on what it learned?"""

from functools import partial

import numpy as np
import pandas as pd

from tmv_lib.calibration.calibrators import read_calibrators
from tmv_lib.explanations import attribution
from tmv_lib.explanations.answer import ExplanationsParams, Material, Member, compare_members, draw_donors, explain
from tmv_lib.explanations.overlays import overlays
from tmv_lib.explanations.regions import typical_image
from tmv_lib.network.processes import shared
from tmv_lib.pipeline import pictures, record
from tmv_lib.pipeline.files import write_csv, write_npy
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import read, read_members
from tmv_lib.pipeline.stage import run


def main() -> None:
    params, members = read("params.yaml", "explanations", ExplanationsParams), read_members("params.yaml")
    if unknown := sorted(set(params.layers) - set(members)):
        raise ValueError(f"params.yaml: explanations.layers names {unknown[0]}, which is no member")
    calibrators = read_calibrators(record.CALIBRATORS)
    cases = record.outside_train(record.read_cases(members, further=record.marker_column()))
    images, masks = record.read_images(cases["image_id"]), record.read_masks(cases["image_id"])
    material = Material(cases, images, masks, typical_image(images))
    rng = np.random.default_rng(params.seed)
    chosen = rng.permutation(np.flatnonzero(cases["split"] == "test"))[: params.sanity_cases]
    donors = draw_donors(cases, record.read_witness(cases["image_id"]), list(members), seed=params.seed)

    answers, question = {}, record.read_question()
    for name, one in members.items():
        trained = attribution.load_trained(one, record.weights(name), question)
        layer = attribution.target_layer(trained, size=images.shape[1], wished=params.layers.get(name, "auto"))
        fresh = partial(attribution.untrained, one, seed=params.seed, precision=trained.precision, question=question)
        member = Member(name, trained, fresh, calibrators[name], layer)
        answers[name] = explain(member, material, donors, chosen, params)
    table, metrics = compare_members(answers, cases, params)

    for name, answer in answers.items():
        write_npy(f"data/explanations/maps_{name}.npy", answer.maps)
        write_npy(f"data/explanations/untrained_{name}.npy", answer.untrained_maps)
    layers = [{"member": name, "layer": metrics[name]["layer"], "method": params.method} for name in members]
    write_csv("data/explanations/cases.csv", table)
    write_csv("data/explanations/layers.csv", pd.DataFrame(layers))
    for plot in ("sanity", "faithfulness"):
        write_csv(f"plots/explanations/{plot}.csv", pd.concat(one.plots[plot] for one in answers.values()), digits=6)
    asked = "disease" if question.task == "binary" else "yes"
    picture = overlays(cases, images, answers, method=params.method, asked=asked)
    pictures.save(picture, "plots/explanations/overlays.png")
    write_metrics("explanations", {"explanations": metrics})


if __name__ == "__main__":
    run(shared(main))

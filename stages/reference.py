"""What does a network say that never sees the image's border?

A small witness, not a member: where it answers otherwise than the members, their answer may hang on what stands in
the border, such as a marker. `failures` asks it.
"""

from typing import Any

import numpy as np

from tmv_lib.network import classifier
from tmv_lib.network.answer import AsMembers, ReferenceParams, start, train
from tmv_lib.network.processes import shared
from tmv_lib.pipeline.files import whole, write_csv, write_npy
from tmv_lib.pipeline.params import read
from tmv_lib.pipeline.question import output_names, read_labels, read_task, targets, with_outputs
from tmv_lib.pipeline.stage import run


def main() -> None:
    params = read("params.yaml", "reference", ReferenceParams)
    shared = read("params.yaml", "train", AsMembers)
    task = read_task("params.yaml")
    cases = read_labels("data/prepare/cases.csv", task)
    names = output_names(task, cases)
    images = params.inside(np.load("data/prepare/images.npy", mmap_mode="r"))

    options: dict[str, Any] = {"seed": params.seed, "precision": shared.precision, "n_outputs": max(len(names), 1)}
    model = start(params.architecture, weights="none", dropout=0.0, **options)
    labels = targets(task, cases)
    train("reference", model, cases, images, params.training(shared), member=params, labels=labels, task=task)
    outputs = classifier.predict(model, images, batch_size=params.batch_size)

    with whole("data/reference/weights.safetensors") as temporary:
        classifier.save_weights(model, temporary)
    write_npy("data/reference/features.npy", outputs.features)
    write_csv("data/reference/predictions.csv", with_outputs(cases, outputs.logit, names), digits=9)


if __name__ == "__main__":
    run(shared(main))

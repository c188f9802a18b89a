"""(No question: this makes what the questions are about.) Train one member and save what it says of every case."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tmv_lib.network import classifier
from tmv_lib.network.answer import curves, start, train
from tmv_lib.network.labels import learned
from tmv_lib.network.processes import shared
from tmv_lib.network.training import TrainParams
from tmv_lib.pipeline.files import read_csv, whole, write_csv, write_npy
from tmv_lib.pipeline.params import read, read_member
from tmv_lib.pipeline.question import output_names, read_labels, read_task, with_outputs
from tmv_lib.pipeline.stage import run


def main() -> None:
    # DVC says which member it runs, so that no text of params.yaml stands in a command line
    name = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("DVC_STAGE", "").partition("@")[2]
    member, params = read_member("params.yaml", name), read("params.yaml", "train", TrainParams)
    task = read_task("params.yaml")
    cases = read_labels("data/prepare/cases.csv", task)
    names = output_names(task, cases)
    labels = learned(cases, params.labels, task=task, readings="data/readings.csv")
    n_outputs = max(len(names), 1)
    images = np.load("data/prepare/images.npy", mmap_mode="r")

    options: dict[str, Any] = member.model_dump(include={"architecture", "weights", "dropout", "seed", "normalise"})
    options |= {"precision": params.precision, "findings": names if task == "multilabel" else ()}
    model = start(**options, n_outputs=n_outputs)
    history = train(name, model, cases, images, params, member=member, labels=labels, task=task) if member.train else []
    predict = partial(classifier.predict, model, batch_size=params.batch_size)

    folder = Path("data/train") / name
    with whole(folder / "weights.safetensors") as temporary:
        classifier.save_weights(model, temporary)
    outputs = predict(images, progress=partial(tqdm, desc=f"{name}: all cases", leave=False))
    write_npy(folder / "features.npy", outputs.features)
    write_csv(folder / "predictions.csv", with_outputs(cases, outputs.logit, names), digits=9)
    spoiled = predict(np.load("data/prepare/foreign.npy"))
    write_npy(folder / "foreign.npy", spoiled.features)
    kinds = read_csv("data/prepare/foreign.csv", ["image_id", "kind"])
    write_csv(folder / "foreign.csv", with_outputs(kinds, spoiled.logit, names), digits=9)
    repaired = np.load("data/prepare/repairs.npy")
    repairs = read_csv("data/prepare/repairs.csv", ["image_id", "repair"])
    mended = predict(repaired).logit if len(repaired) else np.empty((0, n_outputs))
    write_csv(folder / "repairs.csv", with_outputs(repairs, mended, names), digits=9)
    if params.labels != "given":
        write_csv(folder / "labels.csv", cases[["image_id", "split", "y_true"]].assign(learned=labels), digits=6)
    write_csv(f"plots/train/{name}.csv", curves(history), digits=6)


if __name__ == "__main__":
    run(shared(main))

"""(No question: this makes what the questions are about.) Train one member and save what it says of every case."""

import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tmv_lib.network import classifier
from tmv_lib.network.answer import curves, start, train
from tmv_lib.network.processes import shared
from tmv_lib.network.training import TrainParams
from tmv_lib.pipeline.files import read_csv, whole, write_csv, write_npy
from tmv_lib.pipeline.params import Member, check_name, read
from tmv_lib.pipeline.stage import run


def main() -> None:
    # DVC says which member it runs, so that no text of params.yaml stands in a command line
    name = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("DVC_STAGE", "").partition("@")[2]
    check_name(name, where=f"stages.train: {name!r} names the member")
    member, params = read("params.yaml", f"members.{name}", Member), read("params.yaml", "train", TrainParams)
    cases = read_csv("data/prepare/cases.csv", ["image_id", "patient_id", "split", "y_true"])
    images = np.load("data/prepare/images.npy", mmap_mode="r")

    model = start(
        member.architecture,
        weights=member.weights,
        dropout=member.dropout,
        seed=member.seed,
        precision=params.precision,
    )
    history = train(name, model, cases, images, params, member=member) if member.train else []
    predict = partial(classifier.predict, model, batch_size=params.batch_size)

    folder = Path("data/train") / name
    with whole(folder / "weights.safetensors") as temporary:
        classifier.save_weights(model, temporary)
    outputs = predict(images, progress=partial(tqdm, desc=f"{name}: all cases"))
    write_npy(folder / "features.npy", outputs.features)
    write_csv(folder / "predictions.csv", cases.assign(logit=outputs.logit), digits=9)
    spoiled = predict(np.load("data/prepare/foreign.npy"))
    write_npy(folder / "foreign.npy", spoiled.features)
    kinds = read_csv("data/prepare/foreign.csv", ["image_id", "kind"])
    write_csv(folder / "foreign.csv", kinds.assign(logit=spoiled.logit), digits=9)
    repaired, repairs = (
        np.load("data/prepare/repairs.npy"),
        read_csv("data/prepare/repairs.csv", ["image_id", "repair"]),
    )
    logit = predict(repaired).logit if len(repaired) else np.empty(0)
    write_csv(folder / "repairs.csv", repairs.assign(logit=logit), digits=9)
    write_csv(f"plots/train/{name}.csv", curves(history), digits=6)


if __name__ == "__main__":
    run(shared(main))

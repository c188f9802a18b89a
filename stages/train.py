"""(No question: this makes what the questions are about.) Train one member and save what it says of every case."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from tmv_lib.network import classifier
from tmv_lib.network.answer import TrainParams, curves, train
from tmv_lib.pipeline.files import read_csv, whole, write_csv, write_npy
from tmv_lib.pipeline.params import Member, read
from tmv_lib.pipeline.stage import run


def main() -> None:
    key = sys.argv[1]
    member, params = (
        read("params.yaml", f"members.{key}", Member),
        read("params.yaml", "train", TrainParams),
    )
    cases = read_csv("data/prepare/cases.csv", ["image_id", "patient_id", "split", "y_true"])
    images = np.load("data/prepare/images.npy", mmap_mode="r")

    torch.manual_seed(member.seed)
    from_file = member.weights.endswith((".safetensors", ".pt", ".pth"))
    model = classifier.build(
        member.architecture, weights="none" if from_file else member.weights, dropout=member.dropout
    )
    if from_file:
        classifier.load_weights(model, member.weights)
    model = model.to(classifier.available_device()).to(memory_format=torch.channels_last)
    history = train(key, model, member, params, cases, images) if member.train else []

    folder, bar = Path("data/train") / key, partial(tqdm, desc=f"{key}: all cases")
    predict = partial(classifier.predict, model, batch_size=params.batch_size, precision=params.precision)
    outputs = predict(images, progress=bar)
    with whole(folder / "weights.safetensors") as temporary:
        classifier.save_weights(model, temporary)
    write_npy(folder / "features.npy", outputs.features)
    predictions = cases[["image_id", "patient_id", "split", "y_true"]].assign(logit=outputs.logit)
    write_csv(folder / "predictions.csv", predictions, digits=9)
    strangers = predict(np.load("data/prepare/foreign.npy"))
    kinds = read_csv("data/prepare/foreign.csv", ["image_id", "kind"])
    write_npy(folder / "foreign.npy", strangers.features)
    write_csv(folder / "foreign.csv", kinds.assign(logit=strangers.logit), digits=9)
    mended, repairs = np.load("data/prepare/repairs.npy"), read_csv("data/prepare/repairs.csv", ["image_id", "repair"])
    logit = predict(mended).logit if len(mended) else np.empty(0)
    write_csv(folder / "repairs.csv", repairs.assign(logit=logit), digits=9)
    write_csv(f"plots/train/{key}.csv", curves(history), digits=6)


if __name__ == "__main__":
    run(main)

"""What does a network say that never sees the image's border?

A small witness, not a member: where it answers otherwise than the members, their answer may hang on what stands in
the border, such as a marker. `failures` asks it.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from tqdm import tqdm

from tmv_lib.network import classifier, training
from tmv_lib.network.answer import ReferenceParams
from tmv_lib.pipeline.files import read_csv, whole, write_csv, write_npy
from tmv_lib.pipeline.params import Augmentation, read
from tmv_lib.pipeline.stage import run


def main() -> None:
    params = read("params.yaml", "reference", ReferenceParams)
    augmentation = read("params.yaml", "train.augmentation", Augmentation)
    cases = read_csv("data/prepare/cases.csv", ["image_id", "patient_id", "split", "y_true"])
    images = np.load("data/prepare/images.npy", mmap_mode="r")
    side = images.shape[1]
    inside = slice(round(params.crop * side), side - round(params.crop * side))
    images = np.ascontiguousarray(images[:, inside, inside])

    torch.manual_seed(params.seed)
    model = classifier.build(params.architecture, weights="none", dropout=0.0)
    model = model.to(classifier.available_device()).to(memory_format=torch.channels_last)
    y_true, split = cases["y_true"].to_numpy(), cases["split"].to_numpy()
    if (split == "train").sum() < params.batch_size:
        raise ValueError(
            f"{(split == 'train').sum()} training images are less than reference.batch_size = {params.batch_size}"
        )
    # A minute or two of training: nothing to go on from after a kill.
    with TemporaryDirectory() as folder:
        training.fit(
            model,
            (images[split == "train"], y_true[split == "train"]),
            (images[split == "val"], y_true[split == "val"]),
            epochs=params.epochs,
            batch_size=params.batch_size,
            learning_rate=params.learning_rate,
            weight_decay=params.weight_decay,
            positive_weight=1.0,
            augmentation=training.Augmentation(**augmentation.model_dump()),
            patience=params.epochs,
            precision=params.precision,
            seed=params.seed,
            checkpoint=Path(folder) / "reference.pt",
            report=lambda epoch: print(f"reference: epoch {epoch.epoch} val_auroc {epoch.val_auroc:.4f}", flush=True),
            progress=partial(tqdm, desc="reference", leave=False),
        )
    outputs = classifier.predict(model, images, batch_size=params.batch_size, precision=params.precision)
    with whole("data/reference/weights.safetensors") as temporary:
        classifier.save_weights(model, temporary)
    write_npy("data/reference/features.npy", outputs.features)
    predictions = cases[["image_id", "patient_id", "split", "y_true"]].assign(logit=outputs.logit)
    write_csv("data/reference/predictions.csv", predictions, digits=9)


if __name__ == "__main__":
    run(main)

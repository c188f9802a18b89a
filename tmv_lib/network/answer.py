"""Training of a member, and of the witness that never sees the border: params, the call, the checkpoint's name."""

import hashlib
import inspect
import math
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from dvclive import Live
from pydantic import Field
from tqdm import tqdm

from tmv_lib.network import classifier, training
from tmv_lib.pipeline.params import Augmentation, Member, Params


class ReferenceParams(Params):
    architecture: str
    crop: Annotated[float, Field(gt=0, lt=0.4)]
    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    precision: classifier.Precision
    seed: Annotated[int, Field(ge=0)]


class TrainParams(Params):
    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    positive_weight: Literal["balanced", "none"]
    patience: Annotated[int, Field(ge=1)]
    precision: classifier.Precision
    augmentation: Augmentation


def train(
    key: str,
    model: classifier.Classifier,
    member: Member,
    params: TrainParams,
    cases: pd.DataFrame,
    images: np.ndarray,
) -> list[training.Epoch]:
    """Train on train, stop on val, and put the head's bias back to the prevalence of train."""
    y_true, split = cases["y_true"].to_numpy(), cases["split"].to_numpy()
    if (split == "train").sum() < params.batch_size:
        raise ValueError(
            f"{(split == 'train').sum()} training images are less than train.batch_size = {params.batch_size}"
        )
    fit, val = split == "train", split == "val"
    positives = int(y_true[fit].sum())
    weight = (fit.sum() - positives) / positives if params.positive_weight == "balanced" else 1.0
    options = params.model_dump(exclude={"positive_weight", "augmentation", "body"})
    with Live(f"dvclive/{key}", report=None, save_dvc_exp=False, dvcyaml=None, resume=True) as live:

        def report(epoch: training.Epoch) -> None:
            print(
                f"{key}: epoch {epoch.epoch}/{params.epochs} train_loss {epoch.train_loss:.4f}"
                f" val_loss {epoch.val_loss:.4f} val_auroc {epoch.val_auroc:.4f}",
                flush=True,
            )
            for name in ("train_loss", "val_loss", "val_auroc"):
                live.log_metric(name, getattr(epoch, name))
            live.next_step()

        history = training.fit(
            model,
            (images[fit], y_true[fit]),
            (images[val], y_true[val]),
            positive_weight=float(weight),
            augmentation=training.Augmentation(**params.augmentation.model_dump()),
            seed=member.seed,
            checkpoint=Path("checkpoints") / key / f"{digest(member, params, cases, images)}.pt",
            report=report,
            progress=partial(tqdm, desc=key, leave=False),
            **options,
        )
    with torch.no_grad():
        model.head.bias.sub_(math.log(weight))
    return history


def digest(member: Member, params: TrainParams, cases: pd.DataFrame, images: np.ndarray) -> str:
    """Name of a checkpoint: the same for the same data to train on, code and parameters, and for no others."""
    made_of = hashlib.sha256(f"{member!r} {params.model_dump()} torch {torch.__version__}".encode())
    seen = cases["split"].isin(["train", "val"]).to_numpy()  # other cases that are to be read make no other training
    made_of.update(cases.loc[seen, ["image_id", "split", "y_true"]].to_csv(index=False).encode())
    made_of.update(images[seen].tobytes())
    made_of.update(inspect.getsource(train).encode())
    sources = [classifier.__file__, training.__file__]
    for path in [*sources, *([member.weights] if Path(member.weights).is_file() else [])]:
        made_of.update(Path(path).read_bytes())
    return made_of.hexdigest()[:16]


def curves(history: list[training.Epoch]) -> pd.DataFrame:
    """One row an epoch and split, for the plot of the training curves."""
    rows = []
    for entry in history:
        rows.append({"epoch": entry.epoch, "series": "train", "loss": entry.train_loss})
        rows.append({"epoch": entry.epoch, "series": "val", "loss": entry.val_loss, "auroc": entry.val_auroc})
    return pd.DataFrame(rows, columns=["epoch", "series", "loss", "auroc"])

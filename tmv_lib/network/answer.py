"""Training of a member, and of the witness that never sees the border: the call, its log and its checkpoint."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
import torchvision
from dvclive import Live
from pydantic import ConfigDict, Field
from tqdm import tqdm

from tmv_lib.network import classifier, processes, training
from tmv_lib.network.architectures import ONNX
from tmv_lib.network.training import Augmentation, TrainParams
from tmv_lib.pipeline.files import Rows
from tmv_lib.pipeline.params import Member, Normalise, Params, Seed
from tmv_lib.pipeline.question import Task, label_columns

# What `training.fit` and `training.augment` do, by number: to be raised with every change that trains another network.
# A test holds it against the losses of a tiny training.
RECIPE = 1


class AsMembers(Params):
    """What the witness shares with the members."""

    model_config = ConfigDict(extra="ignore")

    precision: Literal["auto", "float32", "bfloat16"]
    augmentation: Augmentation


class ReferenceParams(Params):
    architecture: str
    crop: Annotated[float, Field(gt=0, lt=0.4)]
    epochs: Annotated[int, Field(ge=1, le=10_000)]
    batch_size: Annotated[int, Field(ge=2, le=65_536)]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    seed: Seed

    def training(self, shared: AsMembers) -> TrainParams:
        """How the witness is trained: like a member, never stopped early, by the border that is left of its own."""
        own = self.model_dump(exclude={"architecture", "crop", "seed"})
        augmentation = shared.augmentation.model_copy(update={"border": 0.0})
        return TrainParams(
            **own,
            precision=shared.precision,
            augmentation=augmentation,
            positive_weight="none",
            patience=self.epochs,
        )

    def inside(self, images: np.ndarray) -> np.ndarray:
        """Images (n, side, side[, 3]) without their border, a view."""
        width = round(self.crop * images.shape[1])
        kept = slice(width, images.shape[1] - width)
        return images[:, kept, kept]


def start(
    architecture: str,
    *,
    weights: str,
    dropout: float,
    seed: int,
    precision: Literal["auto", "float32", "bfloat16"],
    n_outputs: int = 1,
    normalise: Normalise = "imagenet",
    findings: Sequence[str] = (),
) -> classifier.Classifier:
    """A network on the device that is there, before training: from a file, by name, or random by seed."""
    device = classifier.available_device()
    torch.manual_seed(seed)
    file = architecture if architecture.endswith(ONNX) else weights
    from_file = file.endswith((".safetensors", ".pt", ".pth", ONNX))
    options: dict[str, Any] = {"dropout": dropout, "n_outputs": n_outputs, "normalise": normalise}
    model = classifier.build(architecture, weights="none" if from_file else weights, **options)
    if from_file:
        classifier.load_weights(model, file, findings=findings)
    model.precision = classifier.fastest_precision(device) if precision == "auto" else precision
    return model.to(device).to(memory_format=torch.channels_last)


def train(
    name: str,
    model: classifier.Classifier,
    cases: pd.DataFrame,
    images: np.ndarray,
    params: TrainParams,
    *,
    member: Member | ReferenceParams,
    labels: np.ndarray,
    task: Task = "binary",
) -> list[training.Epoch]:
    """Train on train and stop on val, from the checkpoint of this very training where there is one.

    labels: what is learned of each case, in the order of the images.

    Raises ValueError for an ONNX file, which has no gradients to train by.
    """
    if member.architecture.endswith(ONNX):
        raise ValueError(f"params.yaml: {member.architecture}, of {name}, is taken as it is, it cannot be trained")
    parts = (np.flatnonzero(cases["split"] == split) for split in ("train", "val"))
    fit, val = ((Rows(images, rows), labels[rows]) for rows in parts)
    set_aside_damaged(Path("dvclive") / name)
    log = partial(Live, f"dvclive/{name}", report=None, save_dvc_exp=False, dvcyaml=None, resume=True)
    with processes.by_the_first(log) as live:

        def report(epoch: training.Epoch) -> None:
            print(
                f"{name}: epoch {epoch.epoch}/{params.epochs} train_loss {epoch.train_loss:.4f}"
                f" val_loss {epoch.val_loss:.4f} val_auroc {epoch.val_auroc:.4f}",
                flush=True,
            )
            if live is not None:
                for key in ("train_loss", "val_loss", "val_auroc"):
                    live.log_metric(key, getattr(epoch, key))
                live.next_step()

        checkpoint = (
            Path("checkpoints") / name / f"{digest(model, member, params, cases, images, labels=labels, task=task)}.pt"
        )
        bar = partial(tqdm, desc=name, leave=False)
        return training.fit(
            model, fit, val, params, task=task, seed=member.seed, checkpoint=checkpoint, report=report, progress=bar
        )


def set_aside_damaged(log: Path) -> None:
    """Move a log of DVCLive away that a kill or a full disk has damaged, so that training goes on with a new one."""
    metrics = log / "metrics.json"
    try:
        if metrics.exists():
            json.loads(metrics.read_text(encoding="utf-8"))
    except ValueError:
        aside = log.with_name(f"{log.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        log.replace(aside)
        print(f"warning: {metrics}: damaged, kept in {aside}; the log of training begins anew")


def digest(
    model: classifier.Classifier,
    member: Params,
    params: TrainParams,
    cases: pd.DataFrame,
    images: np.ndarray,
    *,
    labels: np.ndarray,
    task: Task = "binary",
) -> str:
    """Name of a checkpoint: the same for the same data to train on, recipe, parameters and versions, and for no others.

    Where the code lies and how it reads plays no part, so that a move does not train anew.
    """
    described: dict[str, Any] = {
        "recipe": RECIPE,
        "member": member.model_dump(),
        "train": params.model_dump(exclude_defaults=True),
    }
    described["train"]["precision"] = model.precision  # what `auto` came to on this device
    described |= {"processes": processes.count()} if processes.count() > 1 else {}
    described |= {"torch": torch.__version__, "torchvision": torchvision.__version__}
    made_of = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    used = cases["split"].isin(["train", "val"]).to_numpy()  # other cases that are to be read make no other training
    described_by = ["image_id", "split", *label_columns(task, cases)]
    made_of.update(cases.loc[used, described_by].to_csv(index=False).encode())
    if params.labels != "given":
        made_of.update(labels[used].tobytes())
    for row in np.flatnonzero(used):
        made_of.update(images[row].tobytes())
    weights = Path(getattr(member, "weights", ""))
    if weights.is_file():
        made_of.update(weights.read_bytes())
    return made_of.hexdigest()[:16]


def curves(history: list[training.Epoch]) -> pd.DataFrame:
    """One row per epoch and split, for the plot of the training curves."""
    rows = []
    for entry in history:
        rows.append({"epoch": entry.epoch, "series": "train", "loss": entry.train_loss})
        rows.append({"epoch": entry.epoch, "series": "val", "loss": entry.val_loss, "auroc": entry.val_auroc})
    return pd.DataFrame(rows, columns=["epoch", "series", "loss", "auroc"])

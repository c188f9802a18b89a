"""Training one member: what is minimised, how images vary, when it stops, how it goes on after a kill."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from tmv_lib.network import processes
from tmv_lib.network.classifier import Classifier, as_levels, in_precision, planes, predict
from tmv_lib.network.objective import Objective, objective
from tmv_lib.pipeline.files import Images, whole
from tmv_lib.pipeline.params import Params
from tmv_lib.pipeline.question import Task


class Augmentation(Params):
    """Half-widths of the uniform distributions that a training image is changed by.

    rotation in degrees, translation as a share of the side, scale, brightness and contrast as shares. border: width of
    the frame, share of the side, that is taken from another image of the batch, so that it tells nothing; 0: its own.
    """

    rotation: Annotated[float, Field(ge=0, le=180)]
    translation: Annotated[float, Field(ge=0, le=0.5)]
    scale: Annotated[float, Field(ge=0, lt=1)]
    brightness: Annotated[float, Field(ge=0, le=1)]
    contrast: Annotated[float, Field(ge=0, le=1)]
    border: Annotated[float, Field(ge=0, lt=0.4)] = 0.0


class TrainParams(Params):
    """How a network is trained.

    positive_weight: what the loss of a positive counts, 1 or negatives / positives (`balanced`); see `objective` for
    several outputs. patience: epochs without a better validation loss after which training stops. precision: `auto` is
    bfloat16 where the device has instructions for it. labels: what is learned, see `labels.learned`.
    """

    epochs: Annotated[int, Field(ge=1, le=10_000)]
    batch_size: Annotated[int, Field(ge=2, le=65_536)]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    positive_weight: Literal["balanced", "none"]
    patience: Annotated[int, Field(ge=1)]
    precision: Literal["auto", "float32", "bfloat16"]
    augmentation: Augmentation
    labels: Literal["given", "corrected", "soft"] = "given"


class Epoch(NamedTuple):
    """What an epoch ended with: mean weighted log loss on train and val, AUROC on val, of several outputs the mean.

    Epochs count from 1.
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_auroc: float


def augment(images: torch.Tensor, change: Augmentation, *, generator: torch.Generator) -> torch.Tensor:
    """Vary levels in [0, 1], (n, h, w) or (n, h, w, 3), by one random affine map, brightness and contrast a case.

    What comes in from outside repeats the border, so that no black wedge tells how far an image was turned.
    """
    n = len(images)
    draw = torch.rand(6, n, generator=generator).to(images.device) * 2 - 1
    angle = torch.deg2rad(draw[0] * change.rotation)
    scale = 1 + draw[1] * change.scale
    shift = draw[2:4] * change.translation * 2  # the grid runs from -1 to 1
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    affine = torch.stack([torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1)
    grid = functional.affine_grid(affine, [n, 1, *images.shape[1:3]], align_corners=False)
    moved = functional.grid_sample(planes(images), grid, padding_mode="border", align_corners=False)
    contrast = (1 + draw[4] * change.contrast)[:, None, None, None]
    brightness = (draw[5] * change.brightness)[:, None, None, None]
    mean = moved.mean((1, 2, 3), keepdim=True)
    varied = ((moved - mean) * contrast + mean + brightness).clamp(0, 1)
    if change.border:
        others = varied[torch.randperm(n, generator=generator).to(images.device)]
        varied = torch.where(frame(images.shape[1], change.border, device=images.device), others, varied)
    return varied[:, 0] if images.ndim == 3 else varied.permute(0, 2, 3, 1)


def frame(side: int, border: float, *, device: torch.device) -> torch.Tensor:
    """True (side, side) in the frame whose width is this share of the side."""
    width = round(border * side)
    mask = torch.ones(side, side, dtype=torch.bool, device=device)
    mask[width : side - width, width : side - width] = False
    return mask


def fit(
    model: Classifier,
    train: tuple[Images, np.ndarray],
    val: tuple[Images, np.ndarray],
    params: TrainParams,
    *,
    task: Task = "binary",
    seed: int,
    checkpoint: Path,
    report: Callable[[Epoch], None],
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Epoch]:
    """Minimise the weighted log loss with AdamW on a one-cycle schedule; the epoch of least val loss stays.

    train, val: uint8 images (n, h, w) and labels as `targets` has them. checkpoint: a file that is written after every
    epoch and, where it exists, gone on from: the final weights are the same bytes either way. Loss: `objective`, whose
    weights are undone in the head's bias at the end. Schedule: Smith & Topin 2019. Returns one entry per epoch. Raises
    ValueError where training images are fewer than a batch, and where the loss diverges.
    """
    images, labels = train
    if len(images) < params.batch_size:
        raise ValueError(f"{len(images)} training images are fewer than batch_size = {params.batch_size}")
    device = next(model.parameters()).device
    balanced, n_outputs = params.positive_weight == "balanced", model.head.out_features
    aim = objective(task, labels, n_outputs=n_outputs, balanced=balanced, device=device)
    steps = len(images) // params.batch_size
    optimiser = torch.optim.AdamW(model.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, params.learning_rate, total_steps=params.epochs * steps, pct_start=0.3
    )
    parts: dict[str, Any] = {"model": model, "optimiser": optimiser, "schedule": schedule}
    history, best = _resume(checkpoint, parts, device)
    together = processes.trained_together(model)
    ticks = iter(progress(range((params.epochs - len(history)) * steps)))

    for epoch in range(len(history), params.epochs):
        if _exhausted(history, params.patience):
            break
        # Everything random in an epoch follows from its number, so that a resumed run repeats what it missed;
        # dropout draws from torch's own state, which is why that is seeded too.
        torch.manual_seed(seed * 10_000 + epoch + 1_000_003 * processes.rank())
        generator = torch.Generator().manual_seed(seed * 10_000 + epoch)
        batches = _batches(train, params, model.normalise, generator=generator, device=device)
        model.train()
        losses = [_step(together, parts, aim, *next(batches)) for _ in islice(ticks, steps)]
        processes.as_the_first(model)
        logit = predict(model, val[0], batch_size=params.batch_size).logit
        if not np.isfinite(logit).all():
            raise ValueError(
                f"training diverged in epoch {epoch + 1}: learning_rate = {params.learning_rate:g} is too high"
            )
        val_loss = float(aim.loss(torch.from_numpy(logit).to(device), torch.from_numpy(val[1]).to(device).float()))
        history.append(Epoch(epoch + 1, float(np.mean(losses)), val_loss, float(aim.auroc(val[1], logit))))
        if val_loss == min(entry.val_loss for entry in history):
            best = {name: value.clone() for name, value in model.state_dict().items()}
        states = {name: part.state_dict() for name, part in parts.items()}
        _save({"history": [tuple(entry) for entry in history], "best": best, **states}, checkpoint)
        report(history[-1])
    model.load_state_dict(best)
    with torch.no_grad():
        model.head.bias.sub_(torch.tensor([math.log(weight) for weight in aim.weights], device=device))
    return history


def _resume(
    checkpoint: Path, parts: dict[str, Any], device: torch.device
) -> tuple[list[Epoch], dict[str, torch.Tensor]]:
    """The epochs that a checkpoint has behind it and the best weights, with the parts put where it stopped."""
    if not checkpoint.exists():
        return [], {}
    fresh = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    try:
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        return [Epoch(*entry) for entry in saved["history"]], saved["best"]
    except Exception as error:  # a damaged file raises errors of many kinds
        aside = checkpoint.with_suffix(".damaged")
        checkpoint.replace(aside)
        print(f"warning: {checkpoint}: damaged ({type(error).__name__}), kept as {aside.name}; training begins anew")
        for name, part in parts.items():
            part.load_state_dict(fresh[name])
        return [], {}


def _step(
    together: nn.Module, parts: dict[str, Any], aim: Objective, batch: torch.Tensor, target: torch.Tensor
) -> float:
    with in_precision(parts["model"], batch.device):
        logit = together(batch)
    value = aim.loss(logit, target)
    parts["optimiser"].zero_grad()
    value.backward()
    parts["optimiser"].step()
    parts["schedule"].step()
    return float(value.detach())


def _batches(
    train: tuple[Images, np.ndarray],
    params: TrainParams,
    normalise: Callable[[torch.Tensor], torch.Tensor],
    *,
    generator: torch.Generator,
    device: torch.device,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    images, labels = train
    order = torch.randperm(len(images), generator=generator).numpy()
    # The last incomplete batch is left out: batch statistics of a few cases are poor. Shuffling evens it out.
    for start in range(0, len(images) - params.batch_size + 1, params.batch_size):
        chosen = processes.own_part(order[start : start + params.batch_size])
        levels = augment(as_levels(images[chosen], device), params.augmentation, generator=generator)
        yield normalise(levels), torch.from_numpy(labels[chosen]).to(device).float()


def _exhausted(history: list[Epoch], patience: int) -> bool:
    best = min((entry.val_loss for entry in history), default=np.inf)
    return len(history) > patience and all(entry.val_loss > best for entry in history[-patience:])


def _save(state: dict[str, Any], checkpoint: Path) -> None:
    with whole(checkpoint) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # a full disk
            raise OSError(str(error).splitlines()[0]) from error

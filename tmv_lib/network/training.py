"""Training one member: what is minimised, how images vary, when it stops, how it goes on after a kill."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional

from tmv_lib.network.classifier import Classifier, Precision, as_levels, normalise, predict


class Augmentation(NamedTuple):
    """Half-widths of the uniform distributions that a training image is changed by.

    rotation in degrees, translation as a share of the side, scale, brightness and contrast as shares.
    """

    rotation: float
    translation: float
    scale: float
    brightness: float
    contrast: float


class Epoch(NamedTuple):
    """What an epoch ended with: mean weighted log loss on train and val, AUROC on val. Epochs count from 1."""

    epoch: int
    train_loss: float
    val_loss: float
    val_auroc: float


def augment(images: torch.Tensor, change: Augmentation, *, generator: torch.Generator) -> torch.Tensor:
    """Vary grey levels in [0, 1], (n, h, w), by one random affine map, brightness and contrast a case.

    What comes in from outside repeats the border, so that no black wedge tells how far an image was turned.
    """
    n = len(images)
    draw = torch.rand(6, n, generator=generator).to(images.device) * 2 - 1
    angle = torch.deg2rad(draw[0] * change.rotation)
    scale = 1 + draw[1] * change.scale
    shift = draw[2:4] * change.translation * 2  # the grid runs from -1 to 1
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    affine = torch.stack([torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1)
    grid = functional.affine_grid(affine, [n, 1, *images.shape[1:]], align_corners=False)
    moved = functional.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    contrast = (1 + draw[4] * change.contrast)[:, None, None]
    brightness = (draw[5] * change.brightness)[:, None, None]
    mean = moved.mean((1, 2), keepdim=True)
    return ((moved - mean) * contrast + mean + brightness).clamp(0, 1)


def fit(
    model: Classifier,
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    positive_weight: float,
    augmentation: Augmentation,
    patience: int,
    precision: Precision,
    seed: int,
    checkpoint: Path,
    report: Callable[[Epoch], None],
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> list[Epoch]:
    """Minimise the weighted log loss with AdamW on a one-cycle schedule; the epoch of least val loss stays.

    train, val: uint8 images (n, h, w) and y_true (n,). positive_weight multiplies the loss of positives.
    patience: epochs without a better val loss after which training stops. checkpoint: a file that is written
    after every epoch and, where it exists, gone on from: the final weights are the same bytes either way.
    Loss: -[w y log s(z) + (1 - y) log(1 - s(z))]. Schedule: Smith & Topin 2019. Returns one entry an epoch.
    """
    device = next(model.parameters()).device
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    steps = epochs * (len(train[0]) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps, pct_start=0.3)
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(positive_weight, device=device))
    parts: dict[str, Any] = {"model": model, "optimiser": optimiser, "schedule": schedule}
    history: list[Epoch] = []
    best: dict[str, Any] = {}
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        history, best = [Epoch(*entry) for entry in saved["history"]], saved["best"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])

    def step(batch: torch.Tensor, target: torch.Tensor) -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logit = model(batch)
        value = loss(logit, target)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
        return float(value.detach())

    for epoch in range(len(history), epochs):
        if _exhausted(history, patience):
            break
        # Everything random in an epoch follows from its number, so that a resumed run repeats what it missed;
        # dropout draws from torch's own state, which is why that is seeded too.
        torch.manual_seed(seed * 10_000 + epoch)
        generator = torch.Generator().manual_seed(seed * 10_000 + epoch)
        batches = _batches(train, batch_size=batch_size, augmentation=augmentation, generator=generator, device=device)
        model.train()
        train_loss = np.mean([step(*next(batches)) for _ in progress(range(steps // epochs))])
        logit = predict(model, val[0], batch_size=batch_size, precision=precision).logit
        if not np.isfinite(logit).all():
            raise ValueError(f"training diverged in epoch {epoch + 1}: learning_rate = {learning_rate:g} is too high")
        val_loss = float(loss(torch.from_numpy(logit).to(device), torch.from_numpy(val[1]).to(device).float()))
        history.append(Epoch(epoch + 1, float(train_loss), val_loss, float(roc_auc_score(val[1], logit))))
        if val_loss == min(entry.val_loss for entry in history):
            best = {name: value.clone() for name, value in model.state_dict().items()}
        states = {name: part.state_dict() for name, part in parts.items()}
        _save({"history": [tuple(entry) for entry in history], "best": best, **states}, checkpoint)
        report(history[-1])
    model.load_state_dict(best)
    return history


def _batches(
    train: tuple[np.ndarray, np.ndarray],
    *,
    batch_size: int,
    augmentation: Augmentation,
    generator: torch.Generator,
    device: torch.device,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    images, labels = train
    order = torch.randperm(len(images), generator=generator).numpy()
    # The last incomplete batch is left out: batch statistics of a few cases are poor. Shuffling evens it out.
    for start in range(0, len(images) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        levels = augment(as_levels(images[chosen], device), augmentation, generator=generator)
        yield normalise(levels), torch.from_numpy(labels[chosen]).to(device).float()


def _exhausted(history: list[Epoch], patience: int) -> bool:
    best = min((entry.val_loss for entry in history), default=np.inf)
    return len(history) > patience and all(entry.val_loss > best for entry in history[-patience:])


def _save(state: dict[str, Any], checkpoint: Path) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    temporary = checkpoint.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(checkpoint)

"""An epoch of training beside a plain loop of torchvision and PyTorch over the same images."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.models import resnet50

from benchmarks.measure import Measured, side_by_side
from tmv_lib.network.classifier import Precision, available_device, build, fastest_precision
from tmv_lib.network.training import Epoch, TrainParams, fit
from tmv_lib.pipeline.params import read

IMAGES, SIDE, BATCH = 128, 112, 32


def measure() -> Iterator[Measured]:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (IMAGES, SIDE, SIDE), dtype=np.uint8), rng.integers(0, 2, IMAGES)
    params = read("params.yaml", "train", TrainParams).model_copy(update={"epochs": 1, "batch_size": BATCH})
    device = available_device()
    plain = resnet50(num_classes=1).to(device).to(memory_format=torch.channels_last)

    def ours(precision: Precision) -> list[Epoch]:
        model = build("resnet50", weights="none", dropout=0.2).to(device).to(memory_format=torch.channels_last)
        model.precision = precision
        with TemporaryDirectory() as folder:
            checkpoint, few = Path(folder, "x.pt"), (images[:2], np.array([0, 1]))
            return fit(model, (images, labels), few, params, seed=0, checkpoint=checkpoint, report=lambda epoch: None)

    def theirs() -> None:
        optimiser = torch.optim.AdamW(plain.parameters(), lr=1e-3)
        for start in range(0, IMAGES, BATCH):
            batch = torch.from_numpy(images[start : start + BATCH]).to(device).float()[:, None].expand(-1, 3, -1, -1)
            target = torch.from_numpy(labels[start : start + BATCH]).to(device).float()
            loss = binary_cross_entropy_with_logits(plain(batch / 255).squeeze(1), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    fast = fastest_precision(device)
    full, auto, peer = side_by_side(lambda: ours("float32"), lambda: ours(fast), theirs, repeats=3)
    yield Measured(f"ResNet-50, {IMAGES} images of {SIDE} px, a plain loop in float32", peer.seconds, "s")
    yield Measured("`training.fit` in float32, with augmentation, validation and checkpoint", full.seconds, "s")
    yield Measured("this is so many times the plain loop", full.seconds / peer.seconds, "times", at_most=1.6)
    yield Measured(f"`training.fit` in {fast}, which is what `auto` takes here", auto.seconds, "s")
    yield Measured("this is so many times the plain loop", auto.seconds / peer.seconds, "times", at_most=1.6)

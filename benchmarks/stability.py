"""The whole comparison of maps under mild changes, beside the passes over the same changed images alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Measured, side_by_side
from tmv_lib.explanations.attribution import explainer, target_layer
from tmv_lib.network.classifier import available_device, build, predict
from tmv_lib.stability import similarity
from tmv_lib.stability.perturbations import mild

IMAGES, SIDE, BATCH = 32, 112, 32


def measure() -> Iterator[Measured]:
    images = np.random.default_rng(0).integers(0, 256, size=(IMAGES, SIDE, SIDE), dtype=np.uint8)
    torch.manual_seed(0)
    model = build("densenet121", weights="none", dropout=0.2)
    model = model.to(available_device()).to(memory_format=torch.channels_last)
    options: dict[str, Any] = {"batch_size": BATCH}
    explain = explainer(model, layer=target_layer(model, size=SIDE), **options)
    sizes = {"rotation": 5.0, "translation": 0.03, "brightness": 0.1, "contrast": 1.2, "noise": 0.03, "blur": 0.7}
    changes = mild(sizes, seed=0)
    levels = images.astype(np.float32) / 255.0
    changed = [change.apply(levels) for change in changes.values()]
    original, target = explain(images), np.ones(IMAGES, dtype=int)
    whole, passes = side_by_side(
        lambda: similarity.stability(explain, images, changes, target=target, original=original, batch_size=BATCH),
        lambda: np.concatenate([predict(model, seen, **options).logit for seen in changed]),
        repeats=3,
    )
    what = f"DenseNet-121, {IMAGES} images of {SIDE} px under {len(changes)} changes"
    yield Measured(f"{what}: `stability.stability`", whole.seconds, "s")
    yield Measured("the forward passes alone", passes.seconds, "s")
    yield Measured("the whole costs of its passes", whole.seconds / passes.seconds, "times", at_most=1.6)
    gap = np.abs(whole.result["logit"] - passes.result).max()
    yield Measured("the logits of both differ by", float(gap), "", at_most=1e-4)

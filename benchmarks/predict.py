"""Scoring a new image as `make predict` does, beside the passes of its members alone; needs `make repro`."""

from collections.abc import Iterator

import numpy as np

from benchmarks.measure import Measured, side_by_side
from tmv_lib.network.classifier import predict
from tmv_lib.prediction import system as prediction

IMAGES = 64


def measure() -> Iterator[Measured]:
    images = np.array(np.load("data/prepare/images.npy", mmap_mode="r")[:IMAGES])
    (loading,) = side_by_side(prediction.load, repeats=1)
    system = loading.result
    models = [network.model for network in system.networks.values()]
    ours, passes = side_by_side(
        lambda: prediction.score(system, images),
        lambda: [predict(model, images, batch_size=prediction.AT_ONCE) for model in models],
        repeats=3,
    )
    yield Measured("loading the system", loading.seconds, "s")
    yield Measured(f"`prediction.score`, per image of {IMAGES}", ours.seconds / IMAGES, "s", at_most=0.5)
    yield Measured("the passes of its members alone, per image", passes.seconds / IMAGES, "s")
    yield Measured("scoring costs so many times the passes", ours.seconds / passes.seconds, "times", at_most=3)

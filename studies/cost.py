"""What does an image of 224 pixels a side cost a network, in seconds and in floating-point operations?

Run by `python -m studies.cost`; writes docs/cost.csv. The default run's networks, the witness at what its crop leaves,
in the fastest precision of the device: a training image (forward, backward, augmentation), a pass, and a map. Seconds
are of the clock and of the processor, the least of the repeats; operations are those that PyTorch counts, of which a
multiplication and an addition are two. Wants an idle machine.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from tmv_lib.explanations.attribution import explainer, target_layer
from tmv_lib.network.classifier import Classifier, available_device, build, fastest_precision, predict
from tmv_lib.network.training import TrainParams, fit
from tmv_lib.pipeline.files import write_csv
from tmv_lib.pipeline.params import read

SIDES = {"densenet121": 224, "resnet50": 224, "resnet18": 156}
IMAGES, BATCH, REPEATS = 64, 32, 2


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, nargs="+", default=(1, 2), help="numbers of threads")
    given, rows = options.parse_args().threads, []
    for architecture, side in SIDES.items():
        for threads in given:
            torch.set_num_threads(threads)
            for what, call in calls(architecture, side).items():
                figures = {"architecture": architecture, "side": side, "what": what, "threads": threads}
                rows.append(figures | measured(call))
                print(*rows[-1].values(), flush=True)
    write_csv("docs/cost.csv", pd.DataFrame(rows), digits=3)


def calls(architecture: str, side: int) -> dict[str, Callable[[], Any]]:
    """What is done to `IMAGES` random images, by name."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (IMAGES, side, side), dtype=np.uint8), np.arange(IMAGES) % 2
    params = read("params.yaml", "train", TrainParams).model_copy(update={"epochs": 1, "batch_size": BATCH})
    model = network(architecture)
    explain = explainer(model, layer=target_layer(model, size=side), batch_size=BATCH)

    def train() -> None:
        with TemporaryDirectory() as folder:
            checkpoint, few = Path(folder, "x.pt"), (images[:2], labels[:2])
            learner = network(architecture)
            fit(learner, (images, labels), few, params, seed=0, checkpoint=checkpoint, report=lambda _: None)

    return {
        "training": train,
        "pass": partial(predict, model, images, batch_size=BATCH),
        "map": partial(explain, images),
    }


def network(architecture: str) -> Classifier:
    """An untrained one, as stages start theirs."""
    device = available_device()
    torch.manual_seed(0)
    model = build(architecture, weights="none", dropout=0.2)
    model.precision = fastest_precision(device)
    return model.to(device).to(memory_format=torch.channels_last)


def measured(call: Callable[[], Any]) -> dict[str, float]:
    """Seconds of clock and processor, and 10^9 operations, per image."""
    clock, processor = [], []
    for _ in range(REPEATS):
        start = perf_counter(), process_time()
        call()
        clock.append(perf_counter() - start[0])
        processor.append(process_time() - start[1])
    with FlopCounterMode(display=False) as counter:
        call()
    values = {"seconds": min(clock), "cpu_seconds": min(processor), "gflop": counter.get_total_flops() / 1e9}
    return {name: value / IMAGES for name, value in values.items()}


if __name__ == "__main__":
    main()

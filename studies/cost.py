"""What does an image of 224 pixels a side cost a network, in seconds and in floating-point operations?

Run by `python -m studies.cost`; writes docs/cost.csv. The default run's networks, the witness at what its crop leaves,
in the fastest precision of the device: a training image (forward, backward, augmentation), a pass, and a map. Seconds
are of the clock and of the processor, the least of the repeats; operations are those that PyTorch counts, of which a
multiplication and an addition are two. Then, what the default parameters would take at 400,000 images. Wants an idle
machine. What stands in docs/cost.csv already is not measured again: remove it to begin anew.
"""

import argparse
from collections.abc import Callable
from functools import partial
from itertools import product
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
TABLE = Path("docs/cost.csv")
TRAIN, VAL, REST = 240_000, 40_000, 160_000  # of 400,000 by the default shares; the rest is all but train
MISREAD = 0.1  # assumed share of the rest that a member misreads: each changes inside and frame with 8 others
MEMBER = {"training": 5 * TRAIN, "pass": 5 * VAL + 400_000 + REST + 16 * MISREAD * REST, "map": (2 + 8) * REST}
WITNESS = {"training": 8 * TRAIN, "pass": 8 * VAL + 400_000, "map": 0}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, nargs="+", default=(1, 2), help="numbers of threads")
    given = options.parse_args().threads
    rows = pd.read_csv(TABLE).to_dict("records") if TABLE.exists() else []
    there = {(row["architecture"], row["threads"]) for row in rows}
    for architecture, threads in product(SIDES, given):
        if (architecture, threads) in there:
            continue
        torch.set_num_threads(threads)
        for what, call in calls(architecture, SIDES[architecture]).items():
            figures = {"architecture": architecture, "side": SIDES[architecture], "what": what, "threads": threads}
            rows.append(figures | measured(call))
        write_csv(TABLE, pd.DataFrame(rows), digits=3)
    print(totals(pd.DataFrame(rows)).round(1).to_string())


def totals(table: pd.DataFrame) -> pd.DataFrame:
    """Hours of one core and 10^15 operations that each network takes at 400,000 images, by the rows of one thread."""
    one = table[table["threads"] == 1]
    number = [(WITNESS if row.architecture == "resnet18" else MEMBER)[row.what] for row in one.itertuples()]
    spent = one.assign(hours=one["cpu_seconds"] * number / 3600, petaflop=one["gflop"] * number / 1e6)
    return spent.groupby("architecture", sort=False)[["hours", "petaflop"]].sum()


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

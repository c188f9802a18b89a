"""What becomes of images that no such network should answer?

Run by `make foreign FOLDERS="<folder> ..."` in a project that has run; writes docs/foreign.csv. Asked are the test
images spoiled in every way of `tmv_lib.data.foreign`, the photographs that ship with scikit-image and scikit-learn, the
slices and dose maps that ship with pydicom, phantoms where the networks were trained on something else, and up to a
hundred images of each folder that is named. Nothing is downloaded. A case counts as decided where it is not refused and
the certainty of its probability alone, the price-weighted margin, reaches the threshold.
"""

import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom.data
import skimage
import sklearn.datasets
from PIL import Image

from tmv_lib.data.answer import PrepareParams
from tmv_lib.data.foreign import foreign_images
from tmv_lib.data.images import read_grey, square
from tmv_lib.deferral import costs
from tmv_lib.deferral.answer import DeferralParams
from tmv_lib.phantom.plan import plan_cases
from tmv_lib.phantom.radiograph import render
from tmv_lib.pipeline.files import read_csv, write_csv
from tmv_lib.pipeline.params import read
from tmv_lib.pipeline.record import CASES, of_split, read_images
from tmv_lib.prediction import system
from tmv_lib.statistics.tests import wilson_interval
from tmv_lib.uncertainty import out_of_distribution, refusal

SPOILED, DRAWN = 50, 100  # test images spoiled in each way; images drawn from a folder


def main() -> None:
    prepare, knobs = read("params.yaml", "prepare", PrepareParams), read("params.yaml", "deferral", DeferralParams)
    asked = system.load()
    test = read_images(of_split(read_csv(CASES, ["image_id", "split"]), "test")["image_id"])[:]
    bring = partial(square, size=asked.size, how=asked.how)
    kinds = {"usual test images": test} | collect(test, [Path(name) for name in sys.argv[1:]], bring, prepare)
    shown = np.concatenate(list(kinds.values()))
    found = ask(shown, asked, knobs.prices).assign(kind=np.repeat(list(kinds), [len(of) for of in kinds.values()]))
    write_csv("docs/foreign.csv", table(found, threshold=asked.policy.threshold))


def collect(test: np.ndarray, folders: list[Path], bring: Any, prepare: PrepareParams) -> dict[str, np.ndarray]:
    """Foreign images by kind, uint8 (n, size, size)."""
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(len(test), min(SPOILED, len(test)), replace=False))
    kinds = {kind.replace("_", " by "): of for kind, of in foreign_images(test[chosen], rng=rng).items()}
    kinds["photographs"] = np.stack([bring(tile) for tile in photographs()])
    for modality, kind in {"CT": "CT slices", "MR": "MR slices", "RTDOSE": "dose maps"}.items():
        kinds[kind] = np.unique([bring(frame) for frame in frames(modality)], axis=0)
    if prepare.source != "phantom":
        patients = {"train": 1, "val": 1, "cal": 1, "test": 60}
        plan = plan_cases(seed=1, **prepare.phantom.model_dump() | {"patients": patients})
        kinds["phantoms"] = render(plan, size=test.shape[1]).images[:DRAWN]
    for folder in folders:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
        if not paths:
            raise ValueError(f"{folder}: no PNG or JPEG below it")
        drawn = np.sort(rng.choice(len(paths), min(DRAWN, len(paths)), replace=False))
        kinds[folder.name.replace("_", " ")] = np.stack([bring(read_grey(paths[place])[0]) for place in drawn])
    return kinds


def photographs() -> Iterator[np.ndarray]:
    """Each photograph that two libraries ship, whole, and the quarters and more that fit into it as squares."""
    homes = (Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images")
    for path in sorted(path for home in homes for path in home.iterdir() if path.suffix in (".png", ".jpg")):
        grey = np.asarray(Image.open(path).convert("L"))  # one has transparent pixels, which `read_grey` refuses
        yield grey
        side = min(grey.shape) // 2
        for top in range(0, grey.shape[0] - side + 1, side):
            for left in range(0, grey.shape[1] - side + 1, side):
                yield grey[top : top + side, left : left + side]


def frames(modality: str) -> Iterator[np.ndarray]:
    """Every grey frame of this modality among pydicom's own files, from its darkest to its brightest value."""
    for path in sorted(Path(pydicom.data.__file__).parent.rglob("*.dcm")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # several of these files are broken on purpose
            try:
                header = pydicom.dcmread(path, force=True)
                if header.get("Modality") != modality or header.get("SamplesPerPixel", 1) != 1:
                    continue
                pixels = np.asarray(header.pixel_array, dtype=float)
            except Exception:  # of many kinds, one per broken file
                continue
        for frame in pixels.reshape(-1, *pixels.shape[-2:]):
            if np.ptp(frame) > 0:
                yield (255 * (frame - frame.min()) / np.ptp(frame)).round().astype(np.uint8)


def ask(shown: np.ndarray, asked: system.System, prices: costs.Prices) -> pd.DataFrame:
    """Of each image: `oddity`, whether each detector alone would refuse it, and the certainty of its probability."""
    cases = system.score(asked, shown).cases
    odd = refusal.oddities(shown, cases, asked.pixels)[asked.usual.columns]
    alone = out_of_distribution.alone(odd, asked.usual) <= out_of_distribution.REFUSED
    refused = pd.DataFrame(alone, columns=odd.columns).add_prefix("alone_")
    return refused.assign(oddity=cases["oddity"], certainty=costs.certainty(cases["y_prob"], **prices.errors))


def table(asked: pd.DataFrame, *, threshold: float) -> pd.DataFrame:
    """A row a kind: how many are refused (95 % interval), decided, and would have been decided without the rule."""
    rows = []
    for kind, of in asked.groupby("kind", sort=False):
        refused, sure = of["oddity"] <= out_of_distribution.REFUSED, of["certainty"] >= threshold
        interval = wilson_interval(int(refused.sum()), len(of))
        decided = of.loc[sure & ~refused, "certainty"]
        row = {"kind": kind, "n": len(of), "refused": int(refused.sum())}
        row |= {"refused_low": float(interval.low), "refused_high": float(interval.high), "decided": len(decided)}
        row |= {"surest_decided": decided.max() if len(decided) else np.nan}
        row |= {"decided_without_the_rule": int(sure.sum()), "median_certainty": of["certainty"].median()}
        rows.append(row | of.filter(like="alone_").sum().to_dict())
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()

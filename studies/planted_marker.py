"""Do the instruments tell a network that reads a marker from one that reads the finding?

Run by `make planted-marker`; writes docs/planted_marker.csv. Two ResNet-18 are trained on two phantoms: in one the
findings are faint and a lead letter goes with nearly every positive, in the other the letter is tossed and the
findings are clear. Both are then asked about test images on which the letter is tossed.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from tmv_lib.explanations import regions
from tmv_lib.explanations.attribution import explainer, target_layer
from tmv_lib.network import training
from tmv_lib.network.answer import start
from tmv_lib.network.classifier import Classifier, predict
from tmv_lib.network.training import Augmentation, TrainParams
from tmv_lib.phantom.plan import plan_cases
from tmv_lib.phantom.radiograph import render
from tmv_lib.pipeline.files import write_csv
from tmv_lib.statistics.estimate import Estimate, Resampler, mean
from tmv_lib.statistics.ranking import auroc

SIZE, SHARE = 112, 0.15
WORLDS = {
    "reads the marker": {"marker_train": [0.98, 0.02], "contrast": [0.29, 0.32]},
    "reads the finding": {"marker_train": [0.5, 0.5], "contrast": [0.6, 0.9]},
}


class Asked(NamedTuple):
    """Test cases with their answers: logit (n,), the same with the border hidden, and shares of the maps' energy."""

    cases: pd.DataFrame
    columns: dict[str, np.ndarray]
    chance: dict[str, float]


def main() -> None:
    rows = []
    for name, world in WORLDS.items():
        asked = ask(world, patients={"train": 900, "val": 110, "cal": 10, "test": 270}, epochs=6, seed=0)
        rows += [{"network": name} | row for row in figures(asked)]
    write_csv("docs/planted_marker.csv", pd.DataFrame(rows))


def ask(world: dict[str, Any], *, patients: dict[str, int], epochs: int, seed: int, size: int = SIZE) -> Asked:
    """Train on this phantom, then let the instruments of `explanations` look at what it does on its test images."""
    rates: dict[str, Any] = {"prevalence": 0.4, "mislabelled": 0.0, "ambiguous": 0.0, "blind": 0.0}
    site: dict[str, Any] = {"marker_rest": [0.5, 0.5], "test_exposure": 1.0, "test_noise": 1.0}
    plan = plan_cases(seed=seed, patients=patients, **rates, **site, **world)
    phantom = render(plan, size=size, progress=partial(tqdm, desc="images"))
    model = trained(plan, phantom.images, epochs=epochs, seed=seed)
    test = (plan["split"] == "test").to_numpy()
    cases, images = plan[test].reset_index(drop=True), phantom.images[test]
    seen = explainer(model, layer=target_layer(model, size=size), method="grad_cam", batch_size=32)(images)
    typical = np.median(images, axis=0).astype(np.uint8)
    hidden = predict(model, regions.hide_border(images, typical, share=SHARE), batch_size=32).logit
    maps = seen.maps * np.where(seen.logit > 0, 1, -1)[:, None, None]
    columns = regions.shares(maps, {"masks": phantom.masks[test]}, share=SHARE, positive=seen.logit > 0)
    levels = regions.chance({"masks": phantom.masks[test]}, share=SHARE, n=len(cases))
    chance = {name: float(level[~np.isnan(columns[name])].mean()) for name, level in levels.items()}
    flips = ((seen.logit > 0) != (hidden > 0)).astype(float)
    return Asked(cases, columns | {"logit": seen.logit, "border_flips": flips}, chance)


def trained(plan: pd.DataFrame, images: np.ndarray, *, epochs: int, seed: int) -> Classifier:
    """A ResNet-18 from nothing, its epoch chosen on validation."""
    fit, val = ((plan["split"] == split).to_numpy() for split in ("train", "val"))
    y_true = plan["y_true"].to_numpy()
    params = TrainParams(
        epochs=epochs,
        batch_size=32,
        learning_rate=0.001,
        weight_decay=0.01,
        positive_weight="none",
        patience=epochs,
        precision="float32",
        augmentation=Augmentation(rotation=3, translation=0.03, scale=0.05, brightness=0.05, contrast=0.1),
    )
    model = start("resnet18", weights="none", dropout=0.0, seed=seed, precision=params.precision)
    with TemporaryDirectory() as folder:
        training.fit(
            model,
            (images[fit], y_true[fit]),
            (images[val], y_true[val]),
            params,
            seed=seed,
            checkpoint=Path(folder) / "marker.pt",
            report=print,
            progress=partial(tqdm, desc="training", leave=False),
        )
    return model.eval()


def figures(asked: Asked) -> list[dict[str, Any]]:
    """A row a figure, with its interval over patients and what chance would give."""
    resampler = Resampler(asked.cases["patient_id"].to_numpy(), 1000, seed=0)
    rows: list[dict[str, Any]] = []
    for name in ("y_true", "marker"):
        found = resampler.estimate(auroc, asked.cases[name].to_numpy(), asked.columns["logit"])
        rows.append(row(f"auroc of {name}", found, 0.5))
    for name in ("border_flips", "border", "finding", "pointing"):
        there = ~np.isnan(asked.columns[name])
        found = resampler.among(there).estimate(mean, asked.columns[name][there])
        rows.append(row(name, found, asked.chance.get(name)))
    return rows


def row(name: str, found: Estimate, chance: float | None) -> dict[str, Any]:
    """A figure as a row, beside what chance would give."""
    return {"figure": name, "value": found.value, "value_low": found.low, "value_high": found.high, "chance": chance}


if __name__ == "__main__":
    main()

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
import torch
from tqdm import tqdm

from tmv_lib.explanations import regions
from tmv_lib.explanations.attribution import explainer, reader, target_layer
from tmv_lib.network import classifier, training
from tmv_lib.phantom.plan import plan_cases
from tmv_lib.phantom.radiograph import render
from tmv_lib.pipeline.files import write_csv
from tmv_lib.statistics.estimate import figure, mean
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
        rows += [{"network": name} | row for row in judged(asked, np.random.default_rng(0))]
    write_csv("docs/planted_marker.csv", pd.DataFrame(rows))


def ask(world: dict[str, Any], *, patients: dict[str, int], epochs: int, seed: int) -> Asked:
    """Train on this phantom, then let the instruments of `explanations` look at what it does on its test images."""
    rates: dict[str, Any] = {"prevalence": 0.4, "mislabelled": 0.0, "ambiguous": 0.0, "blind": 0.0}
    site: dict[str, Any] = {"marker_rest": [0.5, 0.5], "test_exposure": 1.0, "test_noise": 1.0}
    plan = plan_cases(seed=seed, patients=patients, **rates, **site, **world)
    phantom = render(plan, size=SIZE, progress=partial(tqdm, desc="images"))
    model = trained(plan, phantom.images, epochs=epochs, seed=seed)
    test = (plan["split"] == "test").to_numpy()
    cases, images = plan[test].reset_index(drop=True), phantom.images[test]
    options: dict[str, Any] = {"batch_size": 32, "precision": "float32"}
    seen = explainer(model, layer=target_layer(model, size=SIZE), method="grad_cam", progress=iter, **options)(images)
    typical = np.median(images, axis=0).astype(np.uint8)
    hidden = reader(model, progress=iter, **options)(regions.hide_border(images, typical, share=SHARE))
    maps = seen.maps * np.where(seen.logit > 0, 1, -1)[:, None, None]
    columns = regions.shares(maps, {"masks": phantom.masks[test]}, share=SHARE, positive=seen.logit > 0)
    levels = regions.chance({"masks": phantom.masks[test]}, share=SHARE, n=len(cases))
    chance = {name: float(level[~np.isnan(columns[name])].mean()) for name, level in levels.items()}
    flips = ((seen.logit > 0) != (hidden > 0)).astype(float)
    return Asked(cases, columns | {"logit": seen.logit, "border_flips": flips}, chance)


def trained(plan: pd.DataFrame, images: np.ndarray, *, epochs: int, seed: int) -> classifier.Classifier:
    """A ResNet-18 from nothing, its epoch chosen on validation."""
    fit, val = ((plan["split"] == split).to_numpy() for split in ("train", "val"))
    y_true = plan["y_true"].to_numpy()
    torch.manual_seed(seed)
    model = classifier.build("resnet18", weights="none", dropout=0.0).to(memory_format=torch.channels_last)
    with TemporaryDirectory() as folder:
        training.fit(
            model,
            (images[fit], y_true[fit]),
            (images[val], y_true[val]),
            positive_weight=1.0,
            augmentation=training.Augmentation(rotation=3, translation=0.03, scale=0.05, brightness=0.05, contrast=0.1),
            epochs=epochs,
            batch_size=32,
            learning_rate=0.001,
            weight_decay=0.01,
            patience=epochs,
            precision="float32",
            seed=seed,
            checkpoint=Path(folder) / "marker.pt",
            report=print,
            progress=partial(tqdm, desc="training", leave=False),
        )
    return model.eval()


def judged(asked: Asked, rng: np.random.Generator) -> list[dict[str, Any]]:
    """A row a figure, with its interval over patients and what chance would give."""
    groups = asked.cases["patient_id"].to_numpy()
    resampling: dict[str, Any] = {"n_resamples": 1000, "rng": rng}
    rows: list[dict[str, Any]] = []
    for name in ("y_true", "marker"):
        truth = asked.cases[name].to_numpy()
        found = figure("value", auroc, truth, asked.columns["logit"], groups=groups, **resampling)
        rows.append({"figure": f"auroc of {name}"} | found | {"chance": 0.5})
    for name in ("border_flips", "border", "finding", "pointing"):
        there = ~np.isnan(asked.columns[name])
        found = figure("value", mean, asked.columns[name][there], groups=groups[there], **resampling)
        rows.append({"figure": name} | found | {"chance": asked.chance.get(name)})
    return rows


if __name__ == "__main__":
    main()

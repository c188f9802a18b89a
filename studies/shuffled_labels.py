"""Do maps change when there was nothing to learn?

Run by `make shuffled-labels` after `make repro`; writes docs/shuffled_labels.csv. The first member's architecture is
trained once more by the `train` section of params.yaml, on the same images with their labels shuffled (Adebayo et al.
2018), and its maps of the test cases are held against those of the member itself. Maps that stay as they are show the
images; maps that change depend on the labels.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from tmv_lib.explanations import regions
from tmv_lib.explanations.answer import ExplanationsParams, Material, read_material
from tmv_lib.explanations.attribution import AsTrained, Explained, explainer, target_layer, trained_and_untrained
from tmv_lib.explanations.sanity import agreement, described, judged, random_pairs
from tmv_lib.network import classifier, training
from tmv_lib.network.answer import TrainParams
from tmv_lib.pipeline.files import read_csv, write_csv
from tmv_lib.pipeline.params import Member, read, read_members
from tmv_lib.statistics.estimate import figure, mean
from tmv_lib.statistics.ranking import auroc


def main() -> None:
    members = read_members("params.yaml")
    name, member = next(iter(members.items()))
    params = read("params.yaml", "explanations", ExplanationsParams)
    material = read_material(members)
    trained, _ = trained_and_untrained(member, f"data/train/{name}/weights.safetensors", seed=params.seed)
    shuffled = train_on_shuffled_labels(member, read("params.yaml", "train", TrainParams), seed=params.seed)
    layer = target_layer(trained, size=material.images.shape[1], wished=params.layers.get(name, "auto"))
    test = (material.cases["split"] == "test").to_numpy()
    explained = {}
    for which, model in {"its own labels": trained, "shuffled labels": shuffled}.items():
        explain = explainer(
            model,
            layer=layer,
            batch_size=params.batch_size,
            precision=read("params.yaml", "train", AsTrained).precision,
            method=params.method,
            progress=partial(tqdm, desc=which),
        )
        explained[which] = explain(material.images[test])
    write_csv("docs/shuffled_labels.csv", compared(explained, on_split(material, test), name, params))


def train_on_shuffled_labels(member: Member, params: TrainParams, *, seed: int) -> classifier.Classifier:
    """A network of this member that learned the training images with each other's labels.

    The epoch stays that knows the shuffled labels best: there is nothing to be learned that holds for validation.
    """
    cases = read_csv("data/prepare/cases.csv", ["split", "y_true"])
    fit = (cases["split"] == "train").to_numpy()
    images = np.load("data/prepare/images.npy", mmap_mode="r")[fit]
    labels = np.random.default_rng(seed).permutation(cases["y_true"].to_numpy()[fit])
    torch.manual_seed(member.seed)
    model = classifier.build(member.architecture, weights="none", dropout=member.dropout)
    model = model.to(classifier.available_device()).to(memory_format=torch.channels_last)
    options = params.model_dump(exclude={"positive_weight", "augmentation"})
    with TemporaryDirectory() as folder:
        training.fit(
            model,
            (images, labels),
            (images[:500], labels[:500]),
            positive_weight=1.0,
            augmentation=training.Augmentation(**params.augmentation.model_dump()),
            seed=member.seed,
            checkpoint=Path(folder) / "shuffled.pt",
            report=print,
            progress=partial(tqdm, desc="shuffled labels", leave=False),
            **options,
        )
    return model.eval()


def on_split(material: Material, there: np.ndarray) -> Material:
    """The material of these cases alone."""
    masks = {name: mask[there] for name, mask in material.masks.items()}
    return Material(material.cases[there].reset_index(drop=True), material.images[there], material.typical, masks)


def compared(
    explained: dict[str, Explained], material: Material, name: str, params: ExplanationsParams
) -> pd.DataFrame:
    """One row a network and figure, with its interval over patients: how well it ranks and where it looks.

    Two rows more, of the first against the second: the similarity of their maps of the same case, and that of random
    pairs of the first one's maps, all of the logit. Regions are looked at in maps of the class that the first network
    names, which the second one cannot.
    """
    cases = material.cases
    rng, groups = np.random.default_rng(params.seed), cases["patient_id"].to_numpy()
    resampling: dict[str, Any] = {"n_resamples": params.resamples, "rng": rng}
    positive = (cases[f"y_prob_{name}"] > 0.5).to_numpy()
    maps = {which: seen.maps * np.where(positive, 1, -1)[:, None, None] for which, seen in explained.items()}
    rows = []
    own, other = (seen.maps for seen in explained.values())
    pairs = random_pairs(own, groups=groups, pairs=params.random_pairs, rng=rng)
    verdict = judged(agreement(own, other), pairs, groups=groups, **resampling)
    for which, seen in explained.items():
        y_true = cases["y_true"].to_numpy()
        found = figure("auroc", auroc, y_true, seen.logit, groups=groups, stratify=y_true, **resampling)
        rows.append(row(which, "auroc", found))
        columns = regions.shares(maps[which], material.masks, share=params.border, positive=positive)
        for region, levels in regions.chance(material.masks, share=params.border, n=len(cases)).items():
            there = ~np.isnan(columns[region])
            found = figure(region, mean, columns[region][there], groups=groups[there], **resampling)
            rows.append(row(which, region, found) | {"chance": levels[there].mean() if there.any() else None})
    rows.append(row("both", "similarity", verdict) | {"passes": verdict.get("passes")})
    rows.append(row("random pairs", "similarity", described(pairs, groups=groups, **resampling)))
    return pd.DataFrame(rows)


def row(which: str, name: str, found: dict[str, Any]) -> dict[str, Any]:
    """A figure as a row; what is absent has no value, but its reason."""
    ends = {"value": "", "low": "_low", "high": "_high", "absent": "_absent"}
    return {"network": which, "figure": name} | {column: found.get(f"{name}{end}") for column, end in ends.items()}


if __name__ == "__main__":
    main()

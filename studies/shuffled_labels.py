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
from tqdm import tqdm

from tmv_lib.explanations import regions
from tmv_lib.explanations.answer import ExplanationsParams
from tmv_lib.explanations.attribution import Explained, explainer, load_trained, target_layer
from tmv_lib.explanations.sanity import agreement, compare_level, describe, random_pairs
from tmv_lib.network import training
from tmv_lib.network.answer import start
from tmv_lib.network.classifier import Classifier
from tmv_lib.network.training import TrainParams
from tmv_lib.pipeline import record
from tmv_lib.pipeline.files import write_csv
from tmv_lib.pipeline.params import Member, read, read_members
from tmv_lib.statistics.estimate import Estimate, Resampler, mean
from tmv_lib.statistics.ranking import auroc


def main() -> None:
    members = read_members("params.yaml")
    name, member = next(iter(members.items()))
    params = read("params.yaml", "explanations", ExplanationsParams)
    as_trained = read("params.yaml", "train", TrainParams)
    cases = record.of_split(record.read_cases(members), "test")
    images, masks = record.read_images(cases["image_id"]), record.read_masks(cases["image_id"])
    trained = load_trained(member, record.weights(name))
    shuffled = train_on_shuffled_labels(member, as_trained, seed=params.seed)
    layer = target_layer(trained, size=images.shape[1], wished=params.layers.get(name, "auto"))
    explained = {}
    for which, model in {"its own labels": trained, "shuffled labels": shuffled}.items():
        explain = explainer(
            model,
            layer=layer,
            batch_size=params.batch_size,
            method=params.method,
            progress=partial(tqdm, desc=which),
        )
        explained[which] = explain(images)
    write_csv("docs/shuffled_labels.csv", compared(explained, cases, masks, name, params))


def train_on_shuffled_labels(member: Member, params: TrainParams, *, seed: int) -> Classifier:
    """A network of this member that learned the training images with each other's labels.

    The epoch stays that knows the shuffled labels best: there is nothing to be learned that holds for validation.
    """
    cases = record.of_split(record.read_case_table(), "train")
    images = record.read_images(cases["image_id"])
    labels = np.random.default_rng(seed).permutation(cases["y_true"].to_numpy())
    model = start(
        member.architecture, weights="none", dropout=member.dropout, seed=member.seed, precision=params.precision
    )
    with TemporaryDirectory() as folder:
        training.fit(
            model,
            (images, labels),
            (images[:500], labels[:500]),
            params.model_copy(update={"positive_weight": "none"}),
            seed=member.seed,
            checkpoint=Path(folder) / "shuffled.pt",
            report=print,
            progress=partial(tqdm, desc="shuffled labels", leave=False),
        )
    return model.eval()


def compared(
    explained: dict[str, Explained],
    cases: pd.DataFrame,
    masks: dict[str, np.ndarray],
    name: str,
    params: ExplanationsParams,
) -> pd.DataFrame:
    """One row a network and figure, with its interval over patients: how well it ranks and where it looks.

    Two rows more, of the first against the second: the similarity of their maps of the same case, and that of random
    pairs of the first one's maps, all of the logit. Regions are looked at in maps of the class that the first network
    names, which the second one cannot.
    """
    rng, y_true = np.random.default_rng(params.seed), cases["y_true"].to_numpy()
    resampler = Resampler(cases["patient_id"].to_numpy(), params.resamples, params.seed)
    positive = (cases[f"y_prob_{name}"] > 0.5).to_numpy()
    rows = []
    own, other = (seen.maps for seen in explained.values())
    pairs = random_pairs(own, groups=resampler.groups, pairs=params.random_pairs, rng=rng)
    verdict = compare_level(agreement(own, other), pairs, resampler)
    for which, seen in explained.items():
        rows.append(row(which, "auroc", resampler.estimate(auroc, y_true, seen.logit, stratify=y_true)))
        maps = seen.maps * np.where(positive, 1, -1)[:, None, None]
        columns = regions.shares(maps, masks, share=params.border, positive=positive)
        for region, levels in regions.chance(masks, share=params.border, n=len(cases)).items():
            there = ~np.isnan(columns[region])
            found = resampler.among(there).estimate(mean, columns[region][there])
            rows.append(row(which, region, found) | {"chance": levels[there].mean() if there.any() else None})
    rows.append(row("both", "similarity", verdict["similarity"]) | {"passes": verdict.get("passes")})
    rows.append(row("random pairs", "similarity", describe(pairs, resampler)["similarity"]))
    return pd.DataFrame(rows)


def row(which: str, name: str, found: Estimate) -> dict[str, Any]:
    """A figure as a row; what is absent has no value, but its reason."""
    ends = {"value": found.value, "low": found.low, "high": found.high, "absent": found.absent}
    return {"network": which, "figure": name} | ends


if __name__ == "__main__":
    main()

"""Does `site` name a shift rightly, and leave a model alone that is right? Phantoms whose shift is planted.

Run by `make sites` after `make repro`; writes docs/sites.csv and docs/sites.md. No network is trained: the members of
the run look at fresh phantoms, one a seed, whose test split is in turn like the source and another place in each of the
ways that `site` has a name for, and `site` is asked what it sees. What a seed said lies in `.studies/sites`; a killed
run goes on where it was, so delete the folder after another training.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from tqdm import tqdm

from tmv_lib.calibration.calibrators import fit_calibrator
from tmv_lib.data.answer import PrepareParams
from tmv_lib.network import classifier
from tmv_lib.phantom.plan import RECIPE, plan_cases
from tmv_lib.phantom.radiograph import render
from tmv_lib.pipeline.files import read_csv, read_rows, whole, write_csv
from tmv_lib.pipeline.params import read, read_members
from tmv_lib.site.answer import Places, SiteParams, compare_looks
from tmv_lib.site.shift import feature_space
from tmv_lib.site.updating import UPDATES, closed_test

FOLDER = Path(".studies/sites")
STRONG = {"test_exposure": 0.6, "test_noise": 1.4}
FAINT = {"test_exposure": 0.8, "test_noise": 1.2}
# What is planted in test, and the name that is right.
SITES: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("prevalence", {"test_prevalence": 0.65}),
    *(("both_classes", change) for change in (STRONG, FAINT)),
    *(("negative_class", {**change, "test_shifted": "negative"}) for change in (STRONG, FAINT)),
    *(("positive_class", {**change, "test_shifted": "positive"}) for change in (STRONG, FAINT)),
]
PIXELS = ["finding", "marker", *RECIPE]  # the columns of a plan that decide what an image looks like
REPEATS, LOCAL = 2000, 300

# Images (n, size, size) to what is known of each: `pc_...` and a `logit_...` a member.
Look = Callable[[np.ndarray], pd.DataFrame]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=20, help="phantoms")
    asked = options.parse_args()
    prepare, site = read("params.yaml", "prepare", PrepareParams), read("params.yaml", "site", SiteParams)
    look = by_members(site.components)
    tables = []
    for seed in tqdm(range(1, asked.seeds + 1), desc="phantoms"):
        path = FOLDER / f"{seed}.csv"
        if not path.exists():
            write_csv(path, told(seed, prepare.phantom.model_dump(), site, look, size=prepare.size))
        tables.append(pd.read_csv(path, keep_default_na=False))
    table = pd.concat(tables, ignore_index=True)
    write_csv("docs/sites.csv", table)
    updates = kept(np.random.default_rng(0), repeats=REPEATS)
    with whole("docs/sites.md") as temporary:
        temporary.write_text(page(table, updates, site), encoding="utf-8")


def by_members(components: int) -> Look:
    """The run's members as they are: the first one's features on the components of its training images, all logits."""
    members = read_members("params.yaml")
    models = {}
    for name, member in members.items():
        models[name] = classifier.build(member.architecture, weights="none", dropout=member.dropout)
        classifier.load_weights(models[name], f"data/train/{name}/weights.safetensors")
        models[name].to(classifier.available_device())
    first = next(iter(members))
    predictions = read_csv(f"data/train/{first}/predictions.csv", ["image_id", "split"])
    in_train = predictions.loc[predictions["split"] == "train", "image_id"]
    train = read_rows(f"data/train/{first}/features.npy", image_id=predictions["image_id"], wanted=in_train)[:]
    space = feature_space(train, n_components=components)

    def look(images: np.ndarray) -> pd.DataFrame:
        predict = partial(classifier.predict, batch_size=32)
        said = {name: predict(model, images, progress=partial(tqdm, desc=name)) for name, model in models.items()}
        features = pd.DataFrame(space(said[first].features)).add_prefix("pc_")
        return features.assign(**{f"logit_{name}": outputs.logit for name, outputs in said.items()})

    return look


def told(seed: int, phantom: dict[str, Any], site: SiteParams, look: Look, *, size: int) -> pd.DataFrame:
    """What `site` says of each of `SITES` on the phantom of this seed: a row a site, with `right` name and `named`."""
    plans = [plan_cases(seed=seed, **phantom | change) for _, change in SITES]
    later = pd.concat([plan[plan["split"] != "train"].assign(place=place) for place, plan in enumerate(plans)])
    looks = later.drop_duplicates(PIXELS)  # of two places that share an image one is rendered
    images = render(looks, size=size, progress=partial(tqdm, desc=f"phantom {seed}")).images
    seen = pd.concat([looks[PIXELS].reset_index(drop=True), look(images)], axis=1)
    rows = []
    for place, cases in later.merge(seen, on=PIXELS, validate="many_to_one").groupby("place"):
        here = cases["split"] == "test"
        members = [column.removeprefix("logit_") for column in seen if column.startswith("logit_")]
        places = Places(cases[~here], cases[here], cases[here], 0)
        found = compare_looks(places, members, site)
        right, change = SITES[place]
        row: dict[str, Any] = {"seed": seed, "planted": planted(change), "right": right, "named": found["name"]}
        for part in ("pooled", "negative", "positive"):
            row[f"auc_{part}"] = found[part]["features"]["observed"]
            row[f"p_{part}"] = min(test["p_value_holm"] for test in found[part].values())
        row["p_prevalence"] = found["prevalence"]["p_value_holm"]
        row["control_p_value"] = found["control"]["p_value"]
        rows.append(row)
    return pd.DataFrame(rows)


def planted(change: dict[str, Any]) -> str:
    """What was planted, as params.yaml would say it."""
    return ", ".join(f"{key}: {value}" for key, value in change.items()) or "nothing"


def kept(rng: np.random.Generator, *, repeats: int) -> pd.DataFrame:
    """How often the closed test takes each update where nothing has shifted, `LOCAL` patients with labels at the site.

    logit P(y = 1) is Normal with mean 0 and standard deviation 2. The model shipped says it as it is, or by a logistic
    calibrator fitted on so many cases of the source: then it is a little wrong, and the test is right to see it.
    """

    def drawn(n: int) -> tuple[np.ndarray, np.ndarray]:
        logit = rng.normal(0, 2, n)
        return (rng.random(n) < expit(logit)).astype(int), logit

    rows = []
    for fitted_on, images in ((None, 1), (None, 3), (1600, 1), (400, 1), (170, 1), (100, 1)):
        times = np.zeros(len(UPDATES))
        for _ in range(repeats):
            y_true, logit = drawn(LOCAL)
            if fitted_on:
                logit = fit_calibrator("logistic", *drawn(fitted_on), groups=np.arange(fitted_on))(logit)
            several = (np.repeat(part, images) for part in (y_true, logit))
            times[closed_test(*several, groups=np.repeat(np.arange(LOCAL), images)).choice[0]] += 1
        rows.append({"fitted_on": fitted_on or 0, "images": images, **dict(zip(UPDATES, times / repeats, strict=True))})
    return pd.DataFrame(rows)


def page(table: pd.DataFrame, updates: pd.DataFrame, site: SiteParams) -> str:
    """docs/sites.md, its numbers read from the tables."""
    seeds, lines = table["seed"].nunique(), []
    for what, rows in table.groupby("planted", sort=False):
        right = rows["right"].iloc[0]
        wrong = rows.loc[rows["named"] != right, "named"].value_counts()
        said = ", ".join(f"`{other}` {count}" for other, count in wrong.items()) or "-"
        aucs = (f"{rows[f'auc_{part}'].mean():.2f}" for part in ("pooled", "negative", "positive"))
        lines.append(f"| {what} | `{right}` | {(rows['named'] == right).sum()} | {said} | {' | '.join(aucs)} |")
    rates = []
    for row in updates.itertuples():
        shipped = f"calibrated on {row.fitted_on} cases of the source" if row.fitted_on else "the true logits"
        rates.append(f"| {shipped} | {row.images} | {row.keep:.1%} | {row.intercept:.1%} | {row.both:.1%} |")
    return "\n".join(
        [
            "# Does `site` name the shift?",
            "",
            "Made by `make sites`. The members of the default run look, as they are, at phantoms of other seeds: `val`",
            "and `cal` are the source, and `test` is in turn each of the places below (keys of `prepare.phantom`).",
            f"{seeds} seeds, images rendered for each, {site.permutations} permutations.",
            "",
            f"| planted in test | right name | named so, of {seeds} | otherwise | AUC pooled | negatives | positives |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *lines,
            "",
            "AUC is that of the classifier that tells test from source, the mean over the seeds. docs/sites.csv has",
            "every seed with its p-values after Holm.",
            "",
            "## How often is a model updated that needs none?",
            "",
            f"{REPEATS} simulated sites of {LOCAL} patients where nothing has shifted (true logits Normal(0, 2)); the",
            "closed test decides what the labels of these patients ask for. A calibrator fitted on few cases is itself",
            "wrong by chance, and is rightly updated the more often: 170 is about what `val` holds by default.",
            "",
            "| the model as shipped says | images a patient | kept | intercept | both |",
            "| --- | --- | --- | --- | --- |",
            *rates,
            "",
        ]
    )


if __name__ == "__main__":
    main()

"""What is known of each case, in words: the queues, the cases nobody may know beforehand, and the reveal."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.preprocessing import normalize

from demo import pictures
from demo.disk import NOT_MEASURED, Disk, figure
from demo.page import Picture, Section
from tmv_lib.failures import taxonomy
from tmv_lib.pipeline.record import CASES, read_case_table, read_features, read_predictions

SEED = 0  # of the neutral numbers
NEIGHBOURS = 4  # nearest training cases that are shown, before the counter-example
ALIKE = 50  # cases among which "this unsure" is counted
UNCERTAIN = (0.25, 0.75)  # probabilities of the queue of that name
IMAGES, ERRORS = "data/prepare/images.npy", "data/failures/errors.csv"
SAID = [f"data/{stage}/cases.csv" for stage in ("ensemble", "calibration", "uncertainty", "explanations", "stability")]
NEEDED = (CASES, IMAGES, SAID[0])
USED = (CASES, *SAID, ERRORS, "params.yaml")
RANDOM = "random"


class Names(NamedTuple):
    """What a positive and a negative case are called, a sentence on the images, or none, and what an image is."""

    positive: str
    negative: str
    note: str = ""
    image: str = "Chest radiograph"

    def called(self, positive: Any) -> str:
        """The name of a class."""
        return self.positive if positive else self.negative


class Collection(NamedTuple):
    """All cases of the test split in the order of their neutral numbers.

    table: indexed by number from 1, with `row` (of images.npy) and `later` (place among the cases outside train), and
    every column that the stages left. everything: the case table of all splits, with `row`.
    """

    disk: Disk
    table: pd.DataFrame
    everything: pd.DataFrame
    members: list[str]
    names: Names


def missing(disk: Disk) -> list[str]:
    """The files without which there is no case to show."""
    return [path for path in NEEDED if disk.read(path) is None]


def names(disk: Disk) -> Names:
    """How this data set calls its classes, from `params.yaml`."""
    params = disk.mapping("params.yaml")
    prepare = params.get("prepare", {})
    if params.get("task", "binary") != "binary":
        asked = " or ".join(params["question"]["positive"])
        return Names(asked, f"no {asked}", image="Image")
    source = prepare.get("source")
    if source == "phantom":
        note = "The images are synthetic radiographs; pneumonia is what was planted in them."
        return Names("pneumonia", "no pneumonia", note)
    own = prepare.get(source, {}) if source else {}
    positive = own.get("positive")
    if source == "medmnist" and positive is None and own.get("dataset") == "pneumoniamnist":
        positive = "pneumonia"
    word = str(positive).lower().replace("_", " ") if positive is not None else "the finding"
    return Names(word, f"no {word.removeprefix('the ')}")


def collect(disk: Disk) -> Collection:
    """Every test case with what the stages left of it. Raises ValueError where a needed file is not there."""
    if lacking := missing(disk):
        raise ValueError(f"{lacking[0]}: no such file; `dvc repro` makes it")
    return _collected(disk, disk.state(*USED))


@lru_cache(maxsize=2)
def _collected(disk: Disk, state: tuple[Any, ...]) -> Collection:
    members = disk.members()
    rows = pd.Series(disk.read(CASES).index, disk.read(CASES)["image_id"])
    everything = read_case_table(root=disk.root)
    everything["row"] = everything["image_id"].map(rows)
    later = everything[everything["split"] != "train"]
    table = later.assign(later=np.arange(len(later)))
    for path in SAID:
        if (known := disk.read(path)) is not None:
            table = table.merge(known[known.columns.difference(table.columns).union(["image_id"])], "left", "image_id")
    if (errors := disk.read(ERRORS)) is not None:
        own = errors[errors["model"] == "ensemble"][["image_id", "kind", "needs", "reason"]]
        table = table.merge(own.rename(columns={"reason": "evidence"}), "left", "image_id")
    for name in members:
        if disk.read(f"data/train/{name}/predictions.csv") is not None:
            raw = read_predictions(name, root=disk.root).set_index("image_id")["score"]
            table[f"raw_{name}"] = expit(table["image_id"].map(raw).to_numpy(dtype=float))
    test = table[table["split"] == "test"]
    order = np.random.default_rng(SEED).permutation(len(test))
    numbered = test.iloc[order].set_index(pd.Index(np.arange(1, len(test) + 1), name="number"))
    return Collection(disk, _judged(numbered, members), everything, members, names(disk))


def _judged(table: pd.DataFrame, members: list[str]) -> pd.DataFrame:
    """With whether the system's answer is wrong, and the doubts of the image and of the model (nats)."""
    table = table.assign(wrong=~table["deferred"] & (table["decision"] != table["y_true"]))
    columns = [[f"{kind}_{name}" for name in members] for kind in ("expected_entropy", "mutual_information")]
    if set(columns[0] + columns[1] + ["members_mutual_information"]) <= set(table):
        # H(mean) = mean expected entropy + [mean information of each member's passes + what the members dispute]
        table["image_doubt"] = table[columns[0]].mean(axis=1)
        table["model_doubt"] = table[columns[1]].mean(axis=1) + table["members_mutual_information"]
    return table


def queues(cases: Collection) -> dict[str, tuple[str, list[int]]]:
    """The queues by key: their name, and the case numbers in them. All but the first give something away."""
    table, decided = cases.table, ~cases.table["deferred"]
    found = {
        RANDOM: ("Random, nothing known beforehand", pd.Series(True, table.index)),
        "positive": (f"Confirmed {cases.names.positive}", table["y_true"] == 1),
        "negative": ("Normal", table["y_true"] == 0),
        "uncertain": ("Uncertain", table["y_prob"].between(*UNCERTAIN)),
        "wrong": ("Wrong", table["wrong"]),
        "deferred": ("Deferred", table["deferred"]),
        "unstable": ("Unstable explanation", _unstable(cases)),
    }
    if "kind" in table:
        found |= {kind: (f"Failure: {kind}", decided & (table["kind"] == kind)) for kind in taxonomy.KINDS}
    return {key: (name, [int(n) for n in table.index[inside]]) for key, (name, inside) in found.items()}


def _unstable(cases: Collection) -> pd.Series:
    """Cases whose explanation moved more than that of most validation cases, by any member."""
    moved = pd.Series(False, cases.table.index)
    found = cases.disk.read("metrics/stability.json")
    for name in cases.members:
        above = figure(found, f"stability.{name}.flipped_and_moved.moved_above")
        if above is not None and f"instability_{name}" in cases.table:
            moved |= cases.table[f"instability_{name}"] > above
    return moved


def image(cases: Collection, number: int) -> np.ndarray:
    """The uint8 image (side, side[, 3]) of a case."""
    images = cases.disk.read(IMAGES)
    if images is None:
        raise ValueError(f"{IMAGES}: no such file; `dvc repro` makes it")
    return np.asarray(images[int(cases.table["row"][number])])


def image_alt(cases: Collection, number: int) -> str:
    """What is said of the image before the reveal: nothing that gives the case away."""
    return f"{cases.names.image} of case {number}, to be read without help. Not for clinical use."


def others(cases: Collection, number: int) -> list[int]:
    """The other test images of the same patient."""
    own = cases.table.index[cases.table["patient_id"] == cases.table["patient_id"][number]]
    return [int(other) for other in own if other != number]


def chance(share: float) -> str:
    """A probability in words, without pretending to certainty.

    >>> chance(0.92), chance(0.001), chance(0.999)
    ('92 %', 'under 1 %', 'over 99 %')
    """
    if share < 0.005:
        return "under 1 %"
    return "over 99 %" if share > 0.995 else f"{100 * share:.0f} %"


def details(cases: Collection, number: int) -> list[Section]:
    """How sure a decided case is, what kind of mistake it is, and its nearest training images."""
    case = cases.table.loc[number]
    kind = [_failure(case)] if case["wrong"] or text(case, "kind") else []
    return [_confidence(cases, case), _doubt(cases, case), *kind, _neighbours(cases, number)]


def text(case: pd.Series, column: str) -> str:
    """A column that may be empty."""
    value = case.get(column)
    return value if isinstance(value, str) else ""


def _confidence(cases: Collection, case: pd.Series) -> Section:
    """Each network's raw and calibrated probability, and that of the ensemble."""
    said = [(name, case.get(f"raw_{name}", np.nan), case.get(f"y_prob_{name}", np.nan)) for name in cases.members]
    said.append(("ensemble", np.mean([raw for _, raw, _ in said]), case["y_prob"]))
    rows = [(name, *(NOT_MEASURED if np.isnan(p) else chance(p) for p in ps)) for name, *ps in said]
    table = pd.DataFrame(rows, columns=["network", "raw", "calibrated"])
    val = cases.everything[cases.everything["split"] == "val"]
    lines = [
        f"The chance of {cases.names.positive} as each network says it, and calibrated on {len(val)} validation images"
        f" of {val['patient_id'].nunique()} patients."
    ]
    return Section("Confidence", lines, table=table)


def _doubt(cases: Collection, case: pd.Series) -> Section:
    if "image_doubt" not in case:
        return Section("Doubt", [f"Doubt of the image and of the model: {NOT_MEASURED}."])
    kinds = {
        "image_doubt": "Doubt of the image (what every network finds hard in it)",
        "model_doubt": "Doubt of the model (what the networks and their dropout passes dispute)",
    }
    others = cases.table[cases.table["patient_id"] != case["patient_id"]]
    return Section("Doubt", [f"{words}: {this_unsure(others, kind, case[kind])}" for kind, words in kinds.items()])


def this_unsure(others: pd.DataFrame, column: str, value: float) -> str:
    """How often the answer was wrong among the cases of others that are nearest to a value of this doubt."""
    known = others[others[column].notna()]
    if np.isnan(value) or known.empty:
        return f"{NOT_MEASURED}."
    alike = known.loc[(known[column] - value).abs().sort_values(kind="stable").index[:ALIKE]]
    wrong = int((alike["decision"] != alike["y_true"]).sum())
    less = 100 * float((known[column] < value).mean())
    return (
        f"among cases this unsure the model was wrong {wrong} of {len(alike)}."
        f" Less doubtful are {less:.0f} of 100 test cases."
    )


def _failure(case: pd.Series) -> Section:
    title, kind = "What kind of mistake", text(case, "kind")
    if not kind:
        words = "No kind: at even odds the ensemble is right, only the price of a miss makes it decide otherwise."
        return Section(title, [words])
    lines = [] if case["wrong"] else ["Wrong at even odds; at these costs the decision is right."]
    lines += [f"Kind of failure: **{kind}**.", f"What it needs: {case['needs']}.", f"Evidence: {case['evidence']}"]
    return Section(title, lines)


class Nearest(NamedTuple):
    """A training case near to one: its row in images.npy, its class, its cosine distance, and whether it was sought."""

    row: int
    y_true: int
    distance: float
    counter_example: bool


def nearest(cases: Collection, number: int) -> list[Nearest]:
    """The nearest training cases by the features of all networks, and the nearest of a class that is not among them."""
    paths = [f"data/train/{name}/{file}" for name in cases.members for file in ("features.npy", "predictions.csv")]
    try:
        features = _features(cases.disk, cases.disk.state(CASES, *paths))
    except (OSError, ValueError):
        return []
    train = cases.everything[cases.everything["split"] == "train"]
    rows, y_true = train["row"].to_numpy(), train["y_true"].to_numpy()
    own = features[int(cases.table["row"][number])]
    distance = 1 - features[rows] @ own / (own @ own)
    order = np.argsort(distance, kind="stable")
    chosen = list(order[:NEIGHBOURS])
    seen = set(y_true[chosen])
    chosen += [place for place in order if y_true[place] not in seen][:1]
    return [
        Nearest(int(rows[place]), int(y_true[place]), float(distance[place]), rank >= NEIGHBOURS)
        for rank, place in enumerate(chosen)
    ]


@lru_cache(maxsize=1)
def _features(disk: Disk, state: tuple[Any, ...]) -> np.ndarray:
    """Unit features of every case, side by side by member, in the order of the case table."""
    ids = disk.read(CASES)["image_id"]
    return np.hstack([normalize(read_features(name, ids, root=disk.root)) for name in disk.members()])


def _neighbours(cases: Collection, number: int) -> Section:
    title, images, found = "Nearest training cases", cases.disk.read(IMAGES), nearest(cases, number)
    if not found or images is None:
        return Section(title, [f"Nearest training cases: {NOT_MEASURED}."])
    shown = []
    for place, near in enumerate(found, start=1):
        rank = "nearest counter-example" if near.counter_example else f"nearest {place}"
        words = f"{rank}: {cases.names.called(near.y_true)} (distance {near.distance:.3f})"
        pixels = pictures.png(pictures.view(images[near.row]))
        shown.append(Picture(pixels, f"Training image, {words}.", words))
    agree = [near.y_true == cases.table["y_true"][number] for near in found if not near.counter_example]
    lines = [
        f"{sum(agree)} of the {len(agree)} nearest training images bear the label of this case. Near means alike to the"
        " networks, not to a doctor."
    ]
    if found[-1].counter_example:
        lines.append("The last one is the nearest that bears the other label.")
    return Section(title, lines, shown)

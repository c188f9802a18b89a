"""The case table: one row an image, the spine that every other table joins on."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd

from tmv_lib.data.lists import read_list, refuse
from tmv_lib.pipeline.question import ASKED_SPLITS, CLASS, FINDING, Task, label_columns

SPLITS = ("train", "val", "cal", "test", "local")
NOTHING_UNREADABLE = pd.DataFrame(columns=["path", "problem"])
COLUMNS = ("image_id", "patient_id", "split", "y_true", "source")
TRAINED_SPLITS = ("train", "val")  # in which a network must see both sides of every finding
WITHOUT_FINDING = "no finding"


class Loaded(NamedTuple):
    """What a source of images hands over.

    cases: `image_id` (unique text), `patient_id` (text), `split` (one of `SPLITS`, or "" where the source
        gives none), the labels, `source` (text), `width`, `height` (pixels of the original), and any
        further columns, which are kept. The labels are, by task, `y_true` (0 or 1), `class` (text), or a column
        `y_true_<finding>` each (1, 0, or NaN where it is not labelled).
    images: uint8 (n, size, size) or, in colour, (n, size, size, 3), in the row order of `cases`.
    unreadable: `path`, `problem` of every file that was left out.
    remarks: the same of every file that was read with a doubt, such as levels scaled by the largest one.
    masks: boolean (n, size, size) by name, where the truth is known: `masks` (the finding), `lungs`.
    ignored: how many images were left out because none of their labels says yes or no.
    converted: how many files were read in other channels than their own, `colour_as_grey` or `grey_as_colour`.
    """

    cases: pd.DataFrame
    images: np.ndarray
    unreadable: pd.DataFrame
    remarks: pd.DataFrame = NOTHING_UNREADABLE
    masks: Mapping[str, np.ndarray] = MappingProxyType({})
    ignored: int = 0
    converted: Mapping[str, int] = MappingProxyType({})


def labels_in_words(cases: pd.DataFrame, task: Task) -> pd.Series:
    """Each case's label as one text: `0` or `1`, its class, or its findings."""
    columns = label_columns(task, cases)
    if task != "multilabel":
        return cases[columns[0]].astype(str)
    names = np.array([name.removeprefix(FINDING) for name in columns])
    found = [", ".join(names[row]) for row in (cases[columns] == 1).to_numpy()]
    return pd.Series(found, cases.index).replace("", WITHOUT_FINDING)


def _strata(pool: pd.DataFrame, task: Task) -> pd.Series:
    """The stratum of each patient: the class of most of the images, or the rarest of the findings."""
    patients = pool.groupby("patient_id")
    if task == "binary":  # Nearly all patients have one class only.
        return patients["y_true"].mean().ge(0.5).astype(int)
    if task == "multiclass":
        return patients[CLASS].agg(lambda classes: classes.mode()[0])
    columns = label_columns(task, pool)
    rarest_first = pool[columns].sum().sort_values(kind="stable").index
    there = patients[list(rarest_first)].max().eq(1)
    return there.idxmax(axis=1).where(there.any(axis=1), WITHOUT_FINDING)


def cut_splits(
    cases: pd.DataFrame, *, val: float, cal: float, test: float, rng: np.random.Generator, task: Task = "binary"
) -> pd.Series:
    """Give every case a split, by patient and stratified by class or rarest finding; what the source has set stays.

    val, cal, test: shares in (0, 1) of the images that stand in train before the cut.

    A case without a split counts as train. A split that holds at least half of its share already is kept;
    a smaller one (the 16 validation images of the common pneumonia release) is dissolved into train and cut
    anew, except `test`, which is cut from train only where the source has none. Returns one split a row.
    Raises ValueError for shares that leave nothing to train, and where a class has too few patients for a split. A
    finding too rare for a split leaves it without: the question about it is what is refused then.
    """
    split = cases["split"].replace("", "train")
    shares = {"val": val, "cal": cal} if (split == "test").any() else {"test": test, "val": val, "cal": cal}
    if min(shares.values()) <= 0 or sum(shares.values()) >= 1:
        said = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise ValueError(f"the shares cut from train must each be above 0 and together below 1, found {said}")
    n_source = int(split.isin(["train", "val", "cal"]).sum())
    cut = {name: share for name, share in shares.items() if (split == name).sum() < share * n_source / 2}
    split = split.where(~split.isin(list(cut)), "train")

    pool = cases[split == "train"]
    stratum = _strata(pool, task)
    size = pool.groupby("patient_id").size()
    for label in sorted(stratum.unique()):
        patients = rng.permutation(stratum.index[stratum == label].to_numpy())
        before = np.cumsum(size[patients].to_numpy()) - size[patients].to_numpy()
        edge = 0.0
        for name, share in cut.items():
            wanted = share * size[patients].sum()
            chosen = patients[(before >= edge) & (before < edge + wanted)]
            if len(chosen) == 0 and task != "multilabel":
                few = f"{len(patients)} patients with {label_columns(task, pool)[0]} = {label}"
                raise ValueError(f"{few} are too few to cut {name} ({share:g})")
            split = split.where(~cases["patient_id"].isin(chosen) | (split != "train"), name)
            edge += wanted
    return split


def name_local(cases: pd.DataFrame, path: str | Path, task: Task = "binary") -> pd.DataFrame:
    """The case table with the test cases that the CSV in `path` names in the split `local`.

    The CSV has a column `image_id` and may have the label columns, the site's own reading: a label, or empty where that
    of the case table counts. A patient moves whole, unnamed test images included: who taught the site's calibration
    must not judge it. Raises ValueError naming file and row of what is no test case, stands there twice or is no label.
    """
    columns = label_columns(task, cases)
    named = read_list(path, ("image_id", *columns))
    if "image_id" not in named or set(named) - {"image_id", *columns}:
        allowed = " and ".join(columns)
        raise ValueError(f"{path}: the columns must be image_id and, at will, {allowed}, found {', '.join(named)}")
    split = named["image_id"].map(cases.set_index("image_id")["split"])
    labels = sorted(cases[CLASS].unique()) if task == "multiclass" else ["0", "1"]
    for told, wrong, problem in (
        (named["image_id"], split.isna(), "is not in the case table"),
        (named["image_id"], split != "test", "is not in the test split, from which the site's labelled cases come"),
        (named["image_id"], named["image_id"].duplicated(), "is named twice"),
        *(
            (named[name], ~named[name].isin([*labels, ""]), f"is none of {', '.join(labels)} and empty")
            for name in columns
            if name in named
        ),
    ):
        refuse(path, wrong, told, problem)
    patients = cases.loc[cases["image_id"].isin(named["image_id"]), "patient_id"]
    moved = (cases["split"] == "test") & cases["patient_id"].isin(patients)
    read = {
        name: cases["image_id"].map(_read(named, name, task)).fillna(cases[name]).astype(cases[name].dtype)
        for name in columns
        if name in named
    }
    return cases.assign(split=cases["split"].where(~moved, "local"), **read)


def _read(named: pd.DataFrame, name: str, task: Task) -> pd.Series:
    """The site's own labels by image, those that it gives."""
    given = named[named[name] != ""].set_index("image_id")[name]
    return given if task == "multiclass" else pd.to_numeric(given)


def check_cases(cases: pd.DataFrame, task: Task = "binary") -> None:
    """Raise ValueError, naming what is wrong, unless `cases` is a case table that the questions can be put to."""
    labels = label_columns(task, cases)
    if missing := [name for name in (*COLUMNS[:3], *labels, COLUMNS[-1]) if name not in cases]:
        raise ValueError(f"case table: column {missing[0]} is missing; it has {', '.join(cases.columns)}")
    if cases["image_id"].duplicated().any():
        twice = cases["image_id"][cases["image_id"].duplicated()].iloc[0]
        raise ValueError(f"case table: image_id {twice} stands there more than once")
    if cases["patient_id"].isna().any():
        raise ValueError(f"case table: image {cases['image_id'][cases['patient_id'].isna()].iloc[0]} has no patient_id")
    if unknown := set(cases["split"]) - set(SPLITS):
        raise ValueError(f"case table: unknown split {sorted(unknown)[0]!r}; allowed are {', '.join(SPLITS)}")
    _check_labels(cases, labels, task)


def _check_labels(cases: pd.DataFrame, labels: list[str], task: Task) -> None:
    """Refuse labels that are none, and splits without a class; of findings those that train need both labels."""
    if task == "multiclass":
        classes = sorted(cases[CLASS].unique())
        if len(classes) < 2:
            raise ValueError(f"case table: there must be two classes at least, found {', '.join(classes)}")
        for name in ASKED_SPLITS:
            if lacking := sorted(set(classes) - set(cases.loc[cases["split"] == name, CLASS])):
                raise ValueError(f"case table: split {name} holds no case of class {', '.join(lacking)}")
        return
    for column in labels:
        if not cases[column].dropna().isin([0, 1]).all() or (task == "binary" and cases[column].isna().any()):
            raise ValueError(f"case table: {column} must be 0 or 1, found {sorted(cases[column].unique())[:5]}")
        for name in ASKED_SPLITS if task == "binary" else TRAINED_SPLITS:
            if (there := set(cases.loc[cases["split"] == name, column].dropna().astype(int))) != {0, 1}:
                held = f"it holds {column} = {sorted(there)}"
                raise ValueError(f"case table: split {name} must hold both classes, {held}")

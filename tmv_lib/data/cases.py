"""The case table: one row an image, the spine that every other table joins on."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd

from tmv_lib.data.lists import read_list, refuse

SPLITS = ("train", "val", "cal", "test", "local")
NOTHING_UNREADABLE = pd.DataFrame(columns=["path", "problem"])
COLUMNS = ("image_id", "patient_id", "split", "y_true", "source")


class Loaded(NamedTuple):
    """What a source of images hands over.

    cases: `image_id` (unique text), `patient_id` (text), `split` (one of `SPLITS`, or "" where the source
        gives none), `y_true` (0 or 1), `source` (text), `width`, `height` (pixels of the original), and any
        further columns, which are kept.
    images: uint8 (n, size, size), in the row order of `cases`.
    unreadable: `path`, `problem` of every file that was left out.
    remarks: the same of every file that was read with a doubt, such as levels scaled by the largest one.
    masks: boolean (n, size, size) by name, where the truth is known: `masks` (the finding), `lungs`.
    ignored: how many images were left out because none of their labels says yes or no.
    """

    cases: pd.DataFrame
    images: np.ndarray
    unreadable: pd.DataFrame
    remarks: pd.DataFrame = NOTHING_UNREADABLE
    masks: Mapping[str, np.ndarray] = MappingProxyType({})
    ignored: int = 0


def cut_splits(cases: pd.DataFrame, *, val: float, cal: float, test: float, rng: np.random.Generator) -> pd.Series:
    """Give every case a split, by patient and stratified by class; what the source has set stays.

    val, cal, test: shares in (0, 1) of the images that stand in train before the cut.

    A case without a split counts as train. A split that holds at least half of its share already is kept;
    a smaller one (the 16 validation images of the common pneumonia release) is dissolved into train and cut
    anew, except `test`, which is cut from train only where the source has none. Returns one split a row.
    Raises ValueError for shares that leave nothing to train, and where a class has too few patients for a split.
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
    # A patient's stratum is the class of most of the images: nearly all patients have one class only.
    stratum = pool.groupby("patient_id")["y_true"].mean().ge(0.5).astype(int)
    size = pool.groupby("patient_id").size()
    for label in sorted(stratum.unique()):
        patients = rng.permutation(stratum.index[stratum == label].to_numpy())
        before = np.cumsum(size[patients].to_numpy()) - size[patients].to_numpy()
        edge = 0.0
        for name, share in cut.items():
            wanted = share * size[patients].sum()
            chosen = patients[(before >= edge) & (before < edge + wanted)]
            if len(chosen) == 0:
                few = f"{len(patients)} patients with y_true = {label}"
                raise ValueError(f"{few} are too few to cut {name} ({share:g})")
            split = split.where(~cases["patient_id"].isin(chosen) | (split != "train"), name)
            edge += wanted
    return split


def name_local(cases: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """The case table with the test cases that the CSV in `path` names in the split `local`.

    The CSV has a column `image_id` and may have `y_true`, the site's own reading: 0, 1, or empty where the label of the
    case table counts. A patient moves whole, unnamed test images included: who taught the site's calibration must not
    judge it. Raises ValueError naming file and row of what is no test case, stands there twice or is no label.
    """
    named = read_list(path, ("image_id", "y_true"))
    if "image_id" not in named or set(named) - {"image_id", "y_true"}:
        raise ValueError(f"{path}: the columns must be image_id and, at will, y_true, found {', '.join(named)}")
    split = named["image_id"].map(cases.set_index("image_id")["split"])
    label = named.reindex(columns=["y_true"], fill_value="")["y_true"]
    for told, wrong, problem in (
        (named["image_id"], split.isna(), "is not in the case table"),
        (named["image_id"], split != "test", "is not in the test split, from which the site's labelled cases come"),
        (named["image_id"], named["image_id"].duplicated(), "is named twice"),
        (label, ~label.isin(["0", "1", ""]), "is none of 0, 1 and empty"),
    ):
        refuse(path, wrong, told, problem)
    read = pd.to_numeric(label[label != ""]).set_axis(named.loc[label != "", "image_id"])
    patients = cases.loc[cases["image_id"].isin(named["image_id"]), "patient_id"]
    moved = (cases["split"] == "test") & cases["patient_id"].isin(patients)
    y_true = cases["image_id"].map(read).fillna(cases["y_true"]).astype(int)
    return cases.assign(split=cases["split"].where(~moved, "local"), y_true=y_true)


def check_cases(cases: pd.DataFrame) -> None:
    """Raise ValueError, naming what is wrong, unless `cases` is a case table that the questions can be put to."""
    if missing := [name for name in COLUMNS if name not in cases]:
        raise ValueError(f"case table: column {missing[0]} is missing; it has {', '.join(cases.columns)}")
    if cases["image_id"].duplicated().any():
        twice = cases["image_id"][cases["image_id"].duplicated()].iloc[0]
        raise ValueError(f"case table: image_id {twice} stands there more than once")
    if cases["patient_id"].isna().any():
        raise ValueError(f"case table: image {cases['image_id'][cases['patient_id'].isna()].iloc[0]} has no patient_id")
    if not cases["y_true"].isin([0, 1]).all():
        raise ValueError(f"case table: y_true must be 0 or 1, found {sorted(cases['y_true'].unique())[:5]}")
    if unknown := set(cases["split"]) - set(SPLITS):
        raise ValueError(f"case table: unknown split {sorted(unknown)[0]!r}; allowed are {', '.join(SPLITS)}")
    for name in ("train", "val", "cal", "test"):
        if (labels := set(cases.loc[cases["split"] == name, "y_true"])) != {0, 1}:
            raise ValueError(f"case table: split {name} must hold both classes, it holds y_true = {sorted(labels)}")

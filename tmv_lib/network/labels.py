"""What a network learns of each training case: the label that the source gives, or what readers have made of it.

A reader's answer stands beside the given label, never instead of it: `data/readings.csv` has a row a reader and case,
and what was learned is written beside what was given.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from tmv_lib.pipeline.files import read_csv
from tmv_lib.pipeline.question import Task, targets

AGREEING = 2  # readers who must say the same against a label to correct it
Labels = Literal["given", "corrected", "soft"]


def learned(cases: pd.DataFrame, how: Labels, *, task: Task, readings: str | Path) -> np.ndarray:
    """What is learned of every case: as `targets`, or, of binary training cases with readings, (n,) in [0, 1].

    given: as the source says. corrected: the other label where two readers or more have read the case and all of them
    say so. soft: the share of positive readings, the given label one of them (Peterson et al. 2019). readings: a CSV
    with `image_id`, `reader` and `y_true`. Raises ValueError naming file and row of what cannot be used.
    """
    labels = targets(task, cases)
    if how == "given":
        return labels
    if task != "binary":
        raise ValueError(f"params.yaml: train.labels is {how!r}: with task: {task} it must be 'given'")
    read = _read(readings, cases).groupby("image_id")["y_true"].agg(["sum", "count"])
    read = read.reindex(cases["image_id"]).fillna(0).to_numpy()
    positive, count = read.T
    return np.asarray((positive + labels) / (count + 1)) if how == "soft" else corrected(labels, positive, count)


def corrected(labels: np.ndarray, positive: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Labels (n,) of 0 and 1, turned round where all of two readings or more, `positive` of `count`, say the other."""
    against = np.where(labels == 1, positive == 0, positive == count)
    return np.where((count >= AGREEING) & against, 1 - labels, labels)


def _read(path: str | Path, cases: pd.DataFrame) -> pd.DataFrame:
    table = read_csv(path, ["image_id", "reader", "y_true"])
    if table.empty:
        raise ValueError(f"{path}: no reading; with train.labels: given none is needed")
    split = table["image_id"].map(cases.set_index("image_id")["split"])
    for wrong, problem in (
        (split.isna(), "image_id {image_id!r} is not in the case table"),
        (split != "train", "image_id {image_id!r} is no training case, and only these are learned from"),
        (~table["y_true"].isin([0, 1]), "y_true is {y_true}, it must be 0 or 1"),
        (table.duplicated(["image_id", "reader"]), "reader {reader!r} has read {image_id!r} twice"),
    ):
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"{path}: row {row + 2}: {problem.format(**table.iloc[row])}")
    return table

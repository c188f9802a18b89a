"""Cases that somebody has collected for training, because a kind of them was missing there."""

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tmv_lib.data.cases import Loaded
from tmv_lib.data.table import load_table
from tmv_lib.pipeline.files import Pile
from tmv_lib.pipeline.question import Task, label_columns, output_names


def read_labelled(path: str | Path, task: Task, known: pd.DataFrame, **options: Any) -> Loaded:
    """Images that a CSV lists in `path`, with `patient_id` and the label columns of a case table, here `known`.

    options: as `load_table`. Raises ValueError as it does, and for a class or finding that `known` has not.
    """
    names = output_names(task, known)
    labels: dict[str, Any] = {"label_column": None, "findings": names}
    if task != "multilabel":
        labels = {"label_column": label_columns(task, known)[0]}
    read = load_table(path, task=task, positive=None, both=False, **labels, **options)
    if unknown := sorted(set(output_names(task, read.cases)) - set(names)):
        raise ValueError(f"{path}: {unknown[0]!r} is none of {', '.join(names)}")
    return read


def with_collected(loaded: Loaded, path: str | Path, task: Task, **options: Any) -> Loaded:
    """What was loaded, its splits cut, and after it the images that the CSV lists, which are for training.

    Raises ValueError naming the file and an image or a patient that is there already, outside train in the patient's
    case: who is learned from must not judge.
    """
    cases = loaded.cases
    read = read_labelled(path, task, cases, **options)
    added = read.cases.assign(split="train", source=cases["source"].iloc[0])
    elsewhere = cases.loc[cases["split"] != "train", "patient_id"]
    for column, there in (("image_id", cases["image_id"]), ("patient_id", elsewhere)):
        if (twice := added[column].isin(there)).any():
            where = "the case table" if column == "image_id" else "val, cal, test or local"
            raise ValueError(f"{path}: {column} {added.loc[twice, column].iloc[0]} is in {where} already")
    pile = Pile()
    for image in chain(loaded.images, read.images):
        pile.put(image)
    unknown = {name: np.zeros((len(added), *mask.shape[1:]), bool) for name, mask in loaded.masks.items()}
    return loaded._replace(
        cases=pd.concat([cases, added], ignore_index=True),
        images=pile.stacked(),
        unreadable=pd.concat([loaded.unreadable, read.unreadable], ignore_index=True),
        remarks=pd.concat([loaded.remarks, read.remarks], ignore_index=True),
        masks={name: np.concatenate([mask, unknown[name]]) for name, mask in loaded.masks.items()},
        ignored=loaded.ignored + read.ignored,
        converted=Counter(loaded.converted) + Counter(read.converted),
    )

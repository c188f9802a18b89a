"""Images listed in a CSV: one row an image, with its label and whatever else is known about it."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from tmv_lib.cases import COLUMNS, SPLITS, Loaded
from tmv_lib.dicom import is_dicom, read_dicom, read_header
from tmv_lib.images import How, read_grey, square


def load_table(
    path: str | Path,
    *,
    root: str | Path | None = None,
    size: int,
    how: How,
    positive: str | None,
    path_column: str = "path",
    label_column: str = "label",
    patient_column: str = "patient_id",
    split_column: str = "split",
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Loaded:
    """Read every image that the CSV lists: PNG, JPEG or DICOM.

    root: the folder that the paths start from; None: the folder of the CSV.
    positive: the label that is y_true = 1; None: the labels are 0 and 1.
    patient_column, split_column: may be missing under their default names. Without patients, a DICOM file's
        own patient id counts where it has one; any other image is a patient of its own. A split may be empty.
    The image_id is the path in the CSV. Further columns are kept; DICOM headers add `manufacturer`,
    `view_position` and `study_date` where the CSV does not have them. Raises ValueError for whatever cannot be
    used, naming column, file and row (the header is row 1); an image that is there but cannot be read is left
    out and listed in `unreadable`.
    """
    root = Path(path).parent if root is None else Path(root)
    names = {path_column: "image_id", label_column: "y_true", patient_column: "patient_id", split_column: "split"}
    table = _read_table(path, names)
    _check_rows(path, table, {ours: column for column, ours in names.items() if column in table}, root)
    listed = table.rename(columns=names)
    listed["y_true"] = _labels(path, listed["y_true"], positive)
    rows, images, unreadable = [], [], []
    for case in progress(listed.to_dict("records")):
        try:
            image, header = _read(root / case["image_id"])
        except (OSError, ValueError) as error:
            unreadable.append({"path": case["image_id"], "problem": str(error)})
            continue
        own = {"patient_id": case["image_id"], "split": "", **header, **case, "source": "table"}
        rows.append(own | {"width": image.shape[1], "height": image.shape[0]})
        images.append(square(image, size=size, how=how))
    if not images:
        raise ValueError(f"{path}: no readable image in {len(listed)} files")
    cases = pd.DataFrame(rows)
    first = [*COLUMNS, "width", "height"]
    cases = cases[[*first, *cases.columns.difference(first, sort=False)]]
    return Loaded(cases, np.stack(images), pd.DataFrame(unreadable, columns=["path", "problem"]))


def _read_table(path: str | Path, names: dict[str, str]) -> pd.DataFrame:
    """The CSV; the columns in `names` (column of the CSV: ours) are text without blanks at its ends."""
    try:
        table, text = pd.read_csv(path), pd.read_csv(path, dtype=str, na_filter=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable CSV ({error})") from error
    needed = [column for column, ours in names.items() if ours in ("image_id", "y_true") or column != ours]
    missing = [column for column in needed if column not in table]
    if missing:
        there = ", ".join(table.columns)
        raise ValueError(f"{path}: column {missing[0]} is missing; needed are {', '.join(needed)}, there are {there}")
    clash = sorted({*COLUMNS, "width", "height"} & (set(table) - set(names)))
    if clash:
        raise ValueError(f"{path}: column {clash[0]} bears a name that the case table uses; rename it")
    if table.empty:
        raise ValueError(f"{path}: no row below the header")
    # As text, a patient 007 and a label None stay what they are.
    return table.assign(**{column: text[column].str.strip() for column in names if column in table})


def _check_rows(path: str | Path, table: pd.DataFrame, columns: dict[str, str], root: Path) -> None:
    """Check the rows by column (ours: column of the CSV) and bring the image paths to one spelling."""

    def refuse(wrong: Any, column: str, problem: str) -> None:
        if np.any(wrong):
            row = int(np.argmax(wrong))
            raise ValueError(f"{path}: row {row + 2}: {column} {table[column].iloc[row]!r} {problem}")

    for ours, column in columns.items():
        if ours == "split":
            refuse(~table[column].isin([*SPLITS, ""]), column, f"is none of {', '.join(SPLITS)}")
        else:
            refuse(table[column] == "", column, "is empty")
    image = columns["image_id"]
    table[image] = [PurePath(os.path.normpath(text)).as_posix() for text in table[image]]
    refuse(table[image].duplicated(), image, "is listed twice")
    refuse([not (root / name).is_file() for name in table[image]], image, f"is no file in {root}")


def _labels(path: str | Path, text: pd.Series, positive: str | None) -> pd.Series:
    found = sorted(set(text))
    if len(found) == 1:
        raise ValueError(f"{path}: one class only, every label is {found[0]!r}")
    if positive is None:
        y_true = pd.to_numeric(text, errors="coerce")
        if set(y_true) != {0, 1}:
            raise ValueError(f"{path}: without `positive` the labels must be 0 and 1, found {', '.join(found[:5])}")
        return y_true.astype(int)
    if len(found) != 2 or positive not in found:
        raise ValueError(f"{path}: the labels must be two, one of them {positive!r}, found {', '.join(found[:5])}")
    return (text == positive).astype(int)


def _read(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    if is_dicom(path):
        return read_dicom(path), read_header(path)
    return read_grey(path), {}

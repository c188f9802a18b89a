"""Images that nobody has labelled: all of a folder, or those that a CSV lists."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tmv_lib.data.dicom import is_dicom
from tmv_lib.data.images import How, read_image, square

SUFFIXES = {".png", ".jpg", ".jpeg", ".dcm", ".dicom"}


class Unlabelled(NamedTuple):
    """What there is to score.

    cases: a row an image: `image_id`, `patient_id`, and `problem`, "" where the image could be read.
    images: uint8 (n, size, size) of the rows without a problem, in their order.
    """

    cases: pd.DataFrame
    images: np.ndarray


def load_unlabelled(
    path: str | Path,
    *,
    size: int,
    how: How,
    patient: str | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Unlabelled:
    """Read PNG, JPEG and DICOM files: every one at any depth of a folder, or those in the column `path` of a CSV.

    The image_id is the path below the folder, or as the CSV gives it, from the CSV's folder. The patient is what the
    CSV's column `patient_id` says, else the PatientID of a DICOM header, else what the regular expression `patient`
    finds in the file name (its group `patient`, or its first), else the image alone. size, how: as in `square`.

    An image that cannot be read keeps its row, with the problem. Raises ValueError where there is no image, none can be
    read, or the CSV cannot be used, naming column and row (the header is row 1).
    """
    path = Path(path)
    root, listed = (path, _below(path)) if path.is_dir() else (path.parent, _in_csv(path))
    pattern = re.compile(patient) if patient else None
    rows, images = [], []
    for image_id, given in progress(list(listed.itertuples(index=False))):
        problem = ""
        header: dict[str, str] = {}
        try:
            image, header = read_image((root / image_id).read_bytes(), name=image_id)
            images.append(square(image, size=size, how=how))
        except (OSError, ValueError) as error:
            problem = str(error)
        found = pattern.search(Path(image_id).name) if pattern else None
        named = (found.groupdict().get("patient") or found.group(1)) if found else image_id
        rows.append((image_id, given or header.get("patient_id") or named, problem))
    if not images:
        raise ValueError(f"{path}: none of {len(rows)} images can be read; the first: {rows[0][2]}")
    return Unlabelled(pd.DataFrame(rows, columns=["image_id", "patient_id", "problem"]), np.stack(images))


def _below(root: Path) -> pd.DataFrame:
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    found = [path for path in files if path.suffix.lower() in SUFFIXES or is_dicom(path)]
    if not found:
        raise ValueError(f"{root}: no PNG, JPEG or DICOM image among {len(files)} files")
    return pd.DataFrame({"path": [path.relative_to(root).as_posix() for path in found], "patient_id": ""})


def _in_csv(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, na_filter=False)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such folder or CSV") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: neither a folder nor a readable CSV ({error})") from error
    if "path" not in table:
        raise ValueError(f"{path}: column path is missing; the columns are {', '.join(table.columns)}")
    if table.empty:
        raise ValueError(f"{path}: no row below the header")
    listed = pd.DataFrame({"path": table["path"].str.strip(), "patient_id": table.get("patient_id", "")})
    listed["patient_id"] = listed["patient_id"].str.strip()
    absent = [not name or not (path.parent / name).is_file() for name in listed["path"]]
    for wrong, problem in ((listed["path"].duplicated(), "is listed twice"), (absent, f"is no file in {path.parent}")):
        if np.any(wrong):
            row = int(np.argmax(wrong))
            raise ValueError(
                f"{path}: row {row + 2}: path {listed['path'].iloc[row]!r} {problem} ({np.sum(wrong)} such rows)"
            )
    return listed

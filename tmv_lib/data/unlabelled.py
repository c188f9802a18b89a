"""Images that nobody has labelled: all of a folder, or those that a CSV lists."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from tmv_lib.data.dicom import SUFFIXES, is_dicom
from tmv_lib.data.images import Channels, How, Progress, read_squares
from tmv_lib.data.lists import is_file, printable, read_list, refuse

PACKED = (
    ".gz",
    ".bz2",
    ".xz",
    ".zip",
)  # of which each may hold an image: it gets a row, which says that it is not read


class Unlabelled(NamedTuple):
    """What there is to score.

    cases: a row per image: `image_id`, `patient_id`, and `problem`, "" where the image could be read.
    images: uint8 (n, size, size) or, in colour, (n, size, size, 3) of the rows without a problem, in their order.
    passed_over: files of a folder that are no image by name or content.
    """

    cases: pd.DataFrame
    images: np.ndarray
    passed_over: list[str]


def load_unlabelled(
    path: str | Path,
    *,
    size: int,
    how: How,
    channels: Channels = "grey",
    patient: str | None = None,
    progress: Progress = iter,
) -> Unlabelled:
    """Read pictures and DICOM files: every one at any depth of a folder, or those in the column `path` of a CSV.

    The image_id is the path below the folder, or as the CSV gives it, from the CSV's folder. The patient is what the
    CSV's column `patient_id` says, else the PatientID of a DICOM header, else what the regular expression `patient`
    finds in the file name (its group `patient`, or its first), else the image alone. size, how: as in `square`.

    An image that cannot be read keeps its row, with the problem. Raises ValueError where there is no image, none can be
    read, or the CSV cannot be used, naming column and row (the header is row 1).
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such folder or CSV")
    root, (listed, passed_over) = (path, _below(path)) if path.is_dir() else (path.parent, (_in_csv(path), []))
    pattern = re.compile(patient) if patient else None
    options: dict[str, Any] = {"size": size, "how": how, "channels": channels, "progress": progress}
    files, images = read_squares(root, list(listed["path"]), **options)
    rows = []
    for file, (image_id, given) in zip(files, listed.itertuples(index=False), strict=True):
        found = pattern.search(Path(image_id).name) if pattern else None
        named = (found.groupdict().get("patient") or found.group(1)) if found else image_id
        rows.append((image_id, given or file.get("patient_id") or named, file.get("problem", "")))
    return Unlabelled(pd.DataFrame(rows, columns=["image_id", "patient_id", "problem"]), images, passed_over)


def _below(root: Path) -> tuple[pd.DataFrame, list[str]]:
    files = [path for path in sorted(root.rglob("*")) if not path.is_dir() and not path.name.startswith(".")]
    pictures = {*Image.registered_extensions(), *SUFFIXES, *PACKED}
    names = {path: printable(path.relative_to(root).as_posix()) for path in files}
    found = [path for path in files if path.suffix.lower() in pictures or (path.is_file() and is_dicom(path))]
    if not found:
        raise ValueError(f"{root}: no picture and no DICOM image among {len(files)} files")
    passed_over = [name for path, name in names.items() if path not in set(found)]
    return pd.DataFrame({"path": [names[path] for path in found], "patient_id": ""}), passed_over


def _in_csv(path: Path) -> pd.DataFrame:
    listed = read_list(path, ("path", "patient_id"))
    if "path" not in listed:
        raise ValueError(f"{path}: column path is missing; the columns are {', '.join(listed)}")
    absent = listed["path"].map(lambda name: not name or not is_file(path.parent / name))
    refuse(path, listed["path"].duplicated(), listed["path"], "is listed twice")
    refuse(path, absent, listed["path"], f"is no file in {path.parent}")
    return pd.DataFrame({"path": listed["path"], "patient_id": listed.get("patient_id", "")})

"""Images in folders: everything below <root>/<split>/<class>, the layout of the common pneumonia release."""

import re
from pathlib import Path

import pandas as pd

from tmv_lib.data.cases import SPLITS, Loaded
from tmv_lib.data.images import Channels, How, Progress, conversions, read_squares, told
from tmv_lib.data.lists import printable
from tmv_lib.pipeline.question import CLASS, Task


def load_folder(
    root: str | Path,
    *,
    size: int,
    how: How,
    classes: list[str],
    positive: str | None,
    patient: str | None,
    task: Task = "binary",
    channels: Channels = "grey",
    progress: Progress = iter,
) -> Loaded:
    """Read every picture and DICOM file below `root`; whatever else lies there is listed in `unreadable`.

    classes: the class folders; positive: of two, where the task is binary, the one that is y_true = 1; else None.
    patient: regular expression, searched in the file name; its group `patient` (or its first group) is the
        patient, every other named group becomes a column of the case table. None: each image is a patient.
    The image_id is the path below `root` without its suffix; hidden files are not looked at. Raises ValueError for a
    missing folder, a folder that is no known split or class, a class without a folder in a split, a name without a
    patient, and two files of one image_id.
    """
    root = Path(root)
    _check_classes(classes, positive, task)
    files = _listed(root, classes, task)
    pattern = re.compile(patient) if patient else None
    if pattern and not pattern.groups:
        raise ValueError(f"patient pattern {patient!r} has no group that names the patient")
    listed = [
        {
            "image_id": name.with_suffix("").as_posix(),
            **_patient(pattern, name),
            "split": name.parts[0],
            **({"y_true": int(name.parts[1] == positive)} if task == "binary" else {CLASS: name.parts[1]}),
            "source": "folder",
        }
        for name in files
    ]
    names = [str(name) for name in files]
    found, images = read_squares(root, names, size=size, how=how, channels=channels, progress=progress)
    rows = [
        case | {"width": file["width"], "height": file["height"]}
        for case, file in zip(listed, found, strict=True)
        if "problem" not in file
    ]
    twice = pd.Series([row["image_id"] for row in rows]).duplicated()
    if twice.any():
        image = rows[int(twice.argmax())]["image_id"]
        raise ValueError(f"{root / image}: two files of this name that differ in their suffix alone")
    tables = told(names, found, "problem"), told(names, found, "remark")
    return Loaded(pd.DataFrame(rows), images, *tables, converted=conversions(found))


def _check_classes(classes: list[str], positive: str | None, task: Task) -> None:
    if task == "multilabel":
        raise ValueError("with task: multilabel give a table or a MedMNIST set: a folder gives an image one class")
    if task == "binary" and (len(classes) != 2 or positive not in classes):
        raise ValueError(f"classes must be two folders, one of them {positive!r} (the positive), found {classes}")
    if task == "multiclass" and (len(set(classes)) < 2 or len(set(classes)) < len(classes) or positive is not None):
        raise ValueError(
            f"with task: multiclass classes must be two or more folders and positive null (question.positive says it),"
            f" found {classes} and {positive!r}"
        )


def _listed(root: Path, classes: list[str], task: Task) -> list[Path]:
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    files = []
    for split in sorted(path for path in root.iterdir() if path.is_dir() and not _hidden(path, root)):
        if split.name not in SPLITS:
            raise ValueError(f"{split}: unknown split; allowed are {', '.join(SPLITS)}")
        folders = sorted(path for path in split.iterdir() if path.is_dir() and not _hidden(path, root))
        lacking = sorted(set(classes) - {folder.name for folder in folders})
        if lacking and task == "multiclass" and split.name != "local":
            raise ValueError(f"{split / lacking[0]}: no such folder; every split needs one per class")
        for folder in folders:
            if folder.name not in classes:
                raise ValueError(f"{folder}: unknown class; allowed are {', '.join(classes)}")
            files += sorted(path for path in folder.rglob("*") if not path.is_dir() and not _hidden(path, root))
    if not files:
        raise ValueError(f"{root}: no image like <split>/<class>/*.jpeg below it")
    return [Path(printable(str(path.relative_to(root)))) for path in files]


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _patient(pattern: re.Pattern[str] | None, name: Path) -> dict[str, str | None]:
    if pattern is None:
        return {"patient_id": name.with_suffix("").as_posix()}
    found = pattern.search(name.name)
    if not found:
        raise ValueError(f"{name}: the patient pattern {pattern.pattern!r} finds nothing in this file name")
    named = found.groupdict()
    return {"patient_id": named.pop("patient", found.group(1)), **named}

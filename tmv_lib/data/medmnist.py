"""The two-dimensional MedMNIST sets (Yang et al. 2023, Scientific Data 10:41), at 28, 64, 128 or 224 pixels."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tmv_lib.data.cases import NOTHING_UNREADABLE, Loaded
from tmv_lib.data.images import Channels, Progress
from tmv_lib.pipeline.grey import luminance
from tmv_lib.pipeline.question import CLASS, FINDING, Task

SIZES = (28, 64, 128, 224)


def load_medmnist(
    *,
    dataset: str,
    size: int,
    root: str | Path,
    positive: str | None = None,
    task: Task = "binary",
    channels: Channels = "grey",
    progress: Progress = iter,
) -> Loaded:
    """Read a MedMNIST set, its train, val and test split kept.

    channels: read as grey, a set in colour becomes luminance (ITU-R 601); as colour, a grey one is there three times.

    root: the folder with `<dataset>_<size>.npz` (at 28 pixels `<dataset>.npz`), downloaded into it where it is
        missing; or the .npz file itself.
    positive: the label, by its MedMNIST name, that is y_true = 1 against all others. None: label 1 of a set with
        two labels, or where the task is not binary. (Label 1 of `breastmnist` is "normal, benign": say `malignant`.)
    MedMNIST names no patients: each image is a patient of its own. Raises ValueError for an unknown set, size
    or label, a set with more than two labels where `positive` is None, and a file that is not what it should be.
    """
    # Here and not above, because the package imports torch.
    from medmnist import INFO

    flat = [name for name in INFO if not name.endswith("3d")]
    if dataset not in flat:
        raise ValueError(f"dataset must be one of {', '.join(flat)}, found {dataset!r}")
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(map(str, SIZES))} for MedMNIST, found {size}")
    labels_by_code = {int(code): name for code, name in INFO[dataset]["label"].items()}
    code = _code(dataset, INFO[dataset], positive, task)
    path = _file(dataset, size, Path(root), INFO[dataset])
    tables, images, remarks = [], [], []
    for split in progress(["train", "val", "test"]):
        pixels, labels = _arrays(path, split, size)
        if len(pixels) != (published := INFO[dataset]["n_samples"][split]):
            remarks.append((path.name, f"{split} has {len(pixels)} images, the published set {published}"))
        name = [f"{dataset}/{split}/{row:06d}" for row in range(len(labels))]
        table = {"image_id": name, "patient_id": name, "split": split, **_labelled(path, labels, labels_by_code, code)}
        tables.append(pd.DataFrame(table))
        images.append(pixels)
    cases = pd.concat(tables, ignore_index=True).assign(source="medmnist", width=size, height=size)
    doubts = pd.DataFrame(remarks, columns=NOTHING_UNREADABLE.columns)
    levels, converted = _in_channels(np.concatenate(images), channels)
    return Loaded(cases, levels, NOTHING_UNREADABLE, doubts, converted=converted)


def _in_channels(images: np.ndarray, channels: Channels) -> tuple[np.ndarray, dict[str, int]]:
    """The images in these channels, and how many of them had others."""
    if channels == "grey":
        return luminance(images), {"colour_as_grey": len(images)} if images.ndim == 4 else {}
    if images.ndim == 4:
        return images, {}
    return np.repeat(images[..., None], 3, axis=3), {"grey_as_colour": len(images)}


def _labelled(
    path: Path, labels: np.ndarray, names: dict[int, str], code: int | None
) -> dict[str, np.ndarray | list[str]]:
    """The label columns of a split: `y_true`, or of every class or finding where no one `code` is asked for."""
    # A set with several labels an image has a column for each, any other the number of its label.
    several = labels.shape[1] > 1
    if code is not None:
        return {"y_true": (labels[:, code] if several else labels[:, 0] == code).astype(int)}
    if several:
        return {f"{FINDING}{names[k]}": labels[:, k].astype(int) for k in sorted(names)}
    if unknown := sorted(set(labels[:, 0].tolist()) - set(names)):
        raise ValueError(f"{path}: label {unknown[0]} is none of {', '.join(map(str, names))}")
    return {CLASS: [names[k] for k in labels[:, 0].tolist()]}


def _code(dataset: str, info: dict[str, Any], positive: str | None, task: Task) -> int | None:
    labels, several = info["label"], info["task"].startswith("multi-label")
    if task != "binary":
        if several != (task == "multilabel"):
            fits = "multilabel" if several else "multiclass"
            raise ValueError(f"{dataset} is a set for task: {fits} or binary, found task: {task}")
        if positive is not None:
            raise ValueError(f"with task: {task} positive must be null (question.positive says it), found {positive!r}")
        return None
    if positive is None and len(labels) == 2:
        return 1
    codes = {name: int(code) for code, name in labels.items()}
    if positive in codes:
        return codes[positive]
    found = "" if positive is None else f", found {positive!r}"
    raise ValueError(f"{dataset}: positive must be one of its labels {'; '.join(labels.values())}{found}")


def _file(dataset: str, size: int, root: Path, info: dict[str, Any]) -> Path:
    import medmnist

    suffix = "" if size == 28 else f"_{size}"
    path = root if root.suffix == ".npz" else root / f"{dataset}{suffix}.npz"
    if path.is_file():
        return path
    url = info[f"url{suffix}"]
    if path == root:
        raise ValueError(f"{path}: no such file; it can be had from {url}")
    root.mkdir(parents=True, exist_ok=True)
    try:
        getattr(medmnist, info["python_class"])(split="val", download=True, size=size, root=str(root))
    except RuntimeError as error:
        raise ValueError(f"{path}: not there, and the download failed; put the file from {url} there") from error
    return path


def _arrays(path: Path, split: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One split: uint8 (n, size, size) and integer labels (n, k), one column unless an image has several labels."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not a whole .npz file; delete it to have it downloaded again")
    try:
        with np.load(path, allow_pickle=False) as archive:
            there = archive.files
            images, labels = (archive.get(f"{split}_{what}") for what in ("images", "labels"))
    except Exception as error:  # a damaged archive raises errors of many kinds
        raise ValueError(f"{path}: not a whole .npz file ({type(error).__name__}: {error})") from error
    for what, array in (("images", images), ("labels", labels)):
        if array is None:
            raise ValueError(f"{path}: {split}_{what} is missing; it has {', '.join(there)}")
    if not np.issubdtype(labels.dtype, np.integer) or len(labels) != len(images) or labels.ndim not in (1, 2):
        must = f"must be whole numbers, (n,) or (n, k) for {len(images)} images"
        raise ValueError(f"{path}: {split}_labels {must}, found {labels.dtype} {labels.shape}")
    if images.dtype != np.uint8 or images.shape[1:] not in [(size, size), (size, size, 3)]:
        must = f"must be uint8 (n, {size}, {size}) or (n, {size}, {size}, 3)"
        raise ValueError(f"{path}: {split}_images {must}, found {images.dtype} {images.shape}")
    return images, labels.reshape(len(images), -1)

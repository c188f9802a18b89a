"""What are we looking at? The sources of images, what each may be asked for, and what is made of its images."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field
from tqdm import tqdm

from tmv_lib.data.cases import NOTHING_UNREADABLE, Loaded
from tmv_lib.data.collected import with_collected
from tmv_lib.data.folder import load_folder
from tmv_lib.data.images import Channels, How
from tmv_lib.data.medmnist import load_medmnist
from tmv_lib.data.table import Meaning, Rows, load_table
from tmv_lib.phantom.cells import cells
from tmv_lib.phantom.plan import plan_cases, repaired
from tmv_lib.phantom.radiograph import render
from tmv_lib.pipeline.grey import luminance
from tmv_lib.pipeline.params import Params, Seed
from tmv_lib.pipeline.question import Task

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Share = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[list[Rate], Field(min_length=2, max_length=2)]
Relative = Annotated[float, Field(gt=0)]


class PatientsParams(Params):
    train: Count
    val: Count
    cal: Count
    test: Count


class PhantomParams(Params):
    patients: PatientsParams
    prevalence: Share
    mislabelled: Rate
    ambiguous: Rate
    blind: Rate
    marker_train: Range
    marker_rest: Range
    contrast: Range
    test_exposure: Relative
    test_noise: Relative
    test_shifted: Literal["both", "negative", "positive"]
    test_prevalence: Share | None


class FolderParams(Params):
    classes: list[str]
    positive: str | None
    patient: str | None


class MedmnistParams(Params):
    dataset: str
    positive: str | None


class TableParams(Params):
    file: str
    join: list[str]
    image: str
    label_column: str | None
    label_separator: str | None
    findings: list[str] | None
    positive: str | None
    uncertain: dict[str, Meaning]
    rows: Rows
    reader_column: str | None
    patient_column: str
    patient: str | None
    split_column: str


class PrepareParams(Params):
    source: Literal["phantom", "folder", "medmnist", "table"]
    root: str
    size: Annotated[int, Field(ge=28, le=1024)]
    square: How
    channels: Channels
    val: Share
    cal: Share
    test: Share
    local: str | None
    collected: str | None = None
    seed: Seed
    phantom: PhantomParams
    folder: FolderParams
    medmnist: MedmnistParams
    table: TableParams


def load(params: PrepareParams, task: Task) -> Loaded:
    """Read the source that params name, its labels those of the task."""
    progress = partial(tqdm, desc=f"prepare: {params.source}", leave=False)
    options: dict[str, Any] = {"size": params.size, "task": task, "channels": params.channels, "progress": progress}
    if params.source == "phantom":
        return _load_phantom(params, task, progress)
    if params.source == "medmnist":
        return load_medmnist(root=params.root, **options, **params.medmnist.model_dump())
    options |= {"root": params.root, "how": params.square}
    if params.source == "folder":
        return load_folder(**options, **params.folder.model_dump())
    list_options = params.table.model_dump()
    listed = below(params.root, list_options.pop("file"), what="prepare.table.file")
    return load_table(listed, **options, **list_options)


def _load_phantom(params: PrepareParams, task: Task, progress: Any) -> Loaded:
    """The radiograph where the task is binary, else coloured cells, of three classes or with two findings."""
    size, colour = params.size, params.channels == "colour"
    if task != "binary":
        plan, images = cells(task, params.phantom.patients.model_dump(), size=size, seed=params.seed)
        images, masks = images if colour else luminance(images), {}
    else:
        plan = plan_cases(seed=params.seed, **params.phantom.model_dump())
        phantom = render(plan, size=size, progress=progress)
        images, masks = phantom.images, {"masks": phantom.masks, "lungs": phantom.lungs}
        images = np.repeat(images[..., None], 3, axis=3) if colour else images
    return Loaded(plan.assign(width=size, height=size), images, NOTHING_UNREADABLE, masks=masks)


def collect(loaded: Loaded, params: PrepareParams, task: Task) -> Loaded:
    """What was loaded, with the images of `prepare.collected`, where it names some, to train on."""
    if params.collected is None:
        return loaded
    listed = below(params.root, params.collected, what="prepare.collected")
    options: dict[str, Any] = {"root": params.root, "size": params.size, "how": params.square}
    progress = partial(tqdm, desc="prepare: collected", leave=False)
    return with_collected(loaded, listed, task, **options, channels=params.channels, progress=progress)


def below(root: str | Path, name: str, *, what: str) -> Path:
    """The path of a file below root. Raises ValueError where it leads out of it, where DVC would not see it change."""
    path = os.path.normpath(name)
    if os.path.isabs(path) or path.split(os.sep)[0] == os.pardir:
        raise ValueError(f"params.yaml: {what} is {name!r}: it must lie below prepare.root, {root}")
    return Path(root) / path


def repairs(cases: pd.DataFrame, params: PrepareParams, task: Task) -> tuple[pd.DataFrame, np.ndarray]:
    """Every image of which the phantom knows what to mend, mended: `image_id` and `repair`, and images like the others.

    Of real images, and of cells, nobody knows: none of them.
    """
    known = params.source == "phantom" and task == "binary"
    shift = params.phantom.model_dump(include={"test_exposure", "test_noise", "test_shifted"})
    plan = repaired(cases[cases["split"] != "train"], **shift) if known else cases[:0].assign(repair="")
    images = render(plan, size=params.size).images if len(plan) else np.empty((0, params.size, params.size), np.uint8)
    return plan[["image_id", "repair"]], np.repeat(images[..., None], 3, 3) if params.channels == "colour" else images

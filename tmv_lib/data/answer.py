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
from tmv_lib.data.folder import load_folder
from tmv_lib.data.images import How
from tmv_lib.data.medmnist import load_medmnist
from tmv_lib.data.table import Meaning, Rows, load_table
from tmv_lib.phantom.plan import plan_cases, repaired
from tmv_lib.phantom.radiograph import render
from tmv_lib.pipeline.params import Params, Seed

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
    positive: str
    patient: str | None


class MedmnistParams(Params):
    dataset: str
    positive: str | None


class TableParams(Params):
    file: str
    join: list[str]
    image: str
    label_column: str
    label_separator: str | None
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
    val: Share
    cal: Share
    test: Share
    local: str | None
    seed: Seed
    phantom: PhantomParams
    folder: FolderParams
    medmnist: MedmnistParams
    table: TableParams


def load(params: PrepareParams) -> Loaded:
    """Read the source that params name."""
    size = params.size
    progress = partial(tqdm, desc=f"prepare: {params.source}")
    if params.source == "phantom":
        plan = plan_cases(seed=params.seed, **params.phantom.model_dump())
        phantom = render(plan, size=size, progress=progress)
        masks = {"masks": phantom.masks, "lungs": phantom.lungs}
        return Loaded(plan.assign(width=size, height=size), phantom.images, NOTHING_UNREADABLE, masks=masks)
    if params.source == "medmnist":
        return load_medmnist(root=params.root, size=size, progress=progress, **params.medmnist.model_dump())
    options: dict[str, Any] = {"root": params.root, "size": size, "how": params.square, "progress": progress}
    if params.source == "folder":
        return load_folder(**options, **params.folder.model_dump())
    list_options = params.table.model_dump()
    listed = below(params.root, list_options.pop("file"), what="prepare.table.file")
    return load_table(listed, **options, **list_options)


def below(root: str | Path, name: str, *, what: str) -> Path:
    """The path of a file below root. Raises ValueError where it leads out of it, where DVC would not see it change."""
    path = os.path.normpath(name)
    if os.path.isabs(path) or path.split(os.sep)[0] == os.pardir:
        raise ValueError(f"params.yaml: {what} is {name!r}: it must lie below prepare.root, {root}")
    return Path(root) / path


def repairs(cases: pd.DataFrame, params: PrepareParams) -> tuple[pd.DataFrame, np.ndarray]:
    """Every image of which the phantom knows what to mend, mended: `image_id` and `repair`, and the images (n, h, w).

    Of real images nobody knows: none of them.
    """
    plan = repaired(cases[cases["split"] != "train"]) if params.source == "phantom" else cases[:0].assign(repair="")
    images = render(plan, size=params.size).images if len(plan) else np.empty((0, params.size, params.size), np.uint8)
    return plan[["image_id", "repair"]], images

"""What are we looking at, and can the data be trusted?"""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field
from tqdm import tqdm

from tmv_lib import figures
from tmv_lib.audit import audit_images
from tmv_lib.cases import NOTHING_UNREADABLE, SPLITS, Loaded, check_cases, cut_splits, name_local
from tmv_lib.files import write_csv, write_metrics, write_npy
from tmv_lib.foreign import foreign_images
from tmv_lib.images import How
from tmv_lib.params import Params, read
from tmv_lib.sources.folder import load_folder
from tmv_lib.sources.medmnist import load_medmnist
from tmv_lib.sources.phantom import plan_cases, repaired
from tmv_lib.sources.phantom_image import render
from tmv_lib.sources.table import Meaning, Rows, load_table
from tmv_lib.stage import run

FOREIGN = 40  # validation images that are spoiled in each way

Share = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[list[Rate], Field(min_length=2, max_length=2)]
Relative = Annotated[float, Field(gt=0)]


class PatientsParams(Params):
    train: Annotated[int, Field(ge=1)]
    val: Annotated[int, Field(ge=1)]
    cal: Annotated[int, Field(ge=1)]
    test: Annotated[int, Field(ge=1)]


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
    seed: Annotated[int, Field(ge=0)]
    phantom: PhantomParams
    folder: FolderParams
    medmnist: MedmnistParams
    table: TableParams


def main() -> None:
    params = read("params.yaml", "prepare", PrepareParams)
    rng = np.random.default_rng(params.seed)
    loaded = load(params)
    cases, images = loaded.cases, loaded.images
    cases["split"] = cut_splits(cases, val=params.val, cal=params.cal, test=params.test, rng=rng)
    if params.local:
        cases = name_local(cases, Path(params.root) / params.local)
    check_cases(cases)
    audit = audit_images(images, cases, loaded.unreadable)
    if loaded.ignored:
        audit.counts["problems"]["ignored_label"] = {"images": loaded.ignored}
    if warning := audit.counts["patients"].get("warning"):
        print(f"warning: {warning}", file=sys.stderr)

    write_csv("data/prepare/cases.csv", cases)
    write_npy("data/prepare/images.npy", images)
    for name, masks in loaded.masks.items():
        write_npy(f"data/prepare/{name}.npy", masks)
    write_csv("data/prepare/audit.csv", audit.findings)
    # Every image of which the phantom knows what to mend; of real images nobody does.
    repairs = repaired(cases[cases["split"] != "train"]) if params.source == "phantom" else cases[:0].assign(repair="")
    mended = render(repairs, size=params.size).images if len(repairs) else images[:0]
    write_csv("data/prepare/repairs.csv", repairs[["image_id", "repair"]])
    write_npy("data/prepare/repairs.npy", mended)
    spoiled, kinds = foreign(cases, images)
    write_npy("data/prepare/foreign.npy", spoiled)
    write_csv("data/prepare/foreign.csv", kinds)
    shown = cases.groupby(["split", "y_true"]).head(6)
    shown = shown.assign(order=shown["split"].map(SPLITS.index)).sort_values(["order", "y_true"], kind="stable")
    titles = [f"{split}, y_true {label}" for split, label in zip(shown["split"], shown["y_true"], strict=True)]
    picture = figures.montage(images[shown.index], titles, columns=6, title=f"{params.source}: {len(cases)} images")
    figures.save(picture, "plots/prepare/montage.png")
    write_metrics("metrics/prepare.json", {"prepare": audit.counts})


def load(params: PrepareParams) -> Loaded:
    """Read the source that params name."""
    size, how = params.size, params.square
    progress = partial(tqdm, desc=f"prepare: {params.source}")
    if params.source == "phantom":
        plan = plan_cases(seed=params.seed, **params.phantom.model_dump())
        phantom = render(plan, size=size, progress=progress)
        masks = {"masks": phantom.masks, "lungs": phantom.lungs}
        return Loaded(plan.assign(width=size, height=size), phantom.images, NOTHING_UNREADABLE, masks)
    if params.source == "folder":
        return load_folder(params.root, size=size, how=how, progress=progress, **params.folder.model_dump())
    if params.source == "medmnist":
        return load_medmnist(root=params.root, size=size, progress=progress, **params.medmnist.model_dump())
    options = params.table.model_dump()
    path = Path(params.root) / options.pop("file")
    return load_table(path, root=params.root, size=size, how=how, progress=progress, **options)


def foreign(cases: pd.DataFrame, images: np.ndarray) -> tuple[np.ndarray, pd.DataFrame]:
    """Validation images spoiled in each way, and a row each: the image_id that it was made from, and the kind.

    Not test images: these are for the last figure, and what is made from them would be looked at before.
    """
    rng = np.random.default_rng(0)
    val = np.flatnonzero(cases["split"] == "val")
    chosen = np.sort(rng.choice(val, min(FOREIGN, len(val)), replace=False))
    spoiled = foreign_images(images[chosen], rng=rng)
    rows = [pd.DataFrame({"image_id": cases["image_id"].to_numpy()[chosen], "kind": kind}) for kind in spoiled]
    return np.concatenate(list(spoiled.values())), pd.concat(rows, ignore_index=True)


if __name__ == "__main__":
    run(main)

"""What are we looking at, and can the data be trusted?"""

import sys
from pathlib import Path

import numpy as np

from tmv_lib.data.audit import audit_images
from tmv_lib.data.cases import SPLITS, check_cases, cut_splits, name_local
from tmv_lib.data.options import PrepareParams, foreign, load
from tmv_lib.phantom.plan import repaired
from tmv_lib.phantom.radiograph import render
from tmv_lib.pipeline import pictures
from tmv_lib.pipeline.files import write_csv, write_npy
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import read
from tmv_lib.pipeline.stage import run


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
    picture = pictures.montage(images[shown.index], titles, columns=6, title=f"{params.source}: {len(cases)} images")
    pictures.save(picture, "plots/prepare/montage.png")
    write_metrics("metrics/prepare.json", {"prepare": audit.counts})


if __name__ == "__main__":
    run(main)

"""What are we looking at, and can the data be trusted?"""

import sys
from typing import Any

import numpy as np

from tmv_lib.data.answer import PrepareParams, below, collect, load, repairs
from tmv_lib.data.audit import NOBODY_KNOWS, audit_images
from tmv_lib.data.cases import SPLITS, check_cases, cut_splits, labels_in_words, name_local
from tmv_lib.data.foreign import spoiled_validation
from tmv_lib.pipeline import pictures
from tmv_lib.pipeline.files import write_csv, write_npy
from tmv_lib.pipeline.metrics import write_metrics
from tmv_lib.pipeline.params import read
from tmv_lib.pipeline.question import read_task
from tmv_lib.pipeline.stage import run


def main() -> None:
    params, task = read("params.yaml", "prepare", PrepareParams), read_task("params.yaml")
    loaded = load(params, task)
    cases = loaded.cases
    rng = np.random.default_rng(params.seed)
    cases["split"] = cut_splits(cases, val=params.val, cal=params.cal, test=params.test, rng=rng, task=task)
    if params.local:
        cases = name_local(cases, below(params.root, params.local, what="prepare.local"), task)
    loaded = collect(loaded._replace(cases=cases), params, task)
    cases, images = loaded.cases, loaded.images
    check_cases(cases, task)
    left_out: dict[str, Any] = {"ignored": loaded.ignored, "converted": loaded.converted}
    audit = audit_images(images, cases, loaded.unreadable, loaded.remarks, task=task, **left_out)
    if unknown := audit.counts["patients"].get("unknown"):
        print(f"warning: of {unknown} {NOBODY_KNOWS}", file=sys.stderr)
    for problem, of in audit.counts["problems"].items():
        if count := sum(of.get(unit, 0) for unit in ("images", "files")):
            print(f"warning: {count} x {problem.replace('_', ' ')}, see data/prepare/audit.csv", file=sys.stderr)
    mends, mended = repairs(cases, params, task)
    kinds, spoiled = spoiled_validation(cases, images)

    write_csv("data/prepare/cases.csv", cases)
    for name, array in {"images": images, **loaded.masks, "repairs": mended, "foreign": spoiled}.items():
        write_npy(f"data/prepare/{name}.npy", array)
    for name, table in {"audit": audit.findings, "repairs": mends, "foreign": kinds}.items():
        write_csv(f"data/prepare/{name}.csv", table)
    shown = cases.assign(label=labels_in_words(cases, task), order=cases["split"].map(SPLITS.index))
    some = shown.groupby(["split", "label"]).head(6 if task == "binary" else 2)
    some = some.sort_values(["order", "label"], kind="stable")
    said = {"binary": "y_true "}.get(task, "")
    titles = [f"{split}, {said}{label}" for split, label in zip(some["split"], some["label"], strict=True)]
    picture = pictures.montage(images[some.index], titles, columns=6, title=f"{params.source}: {len(cases)} images")
    pictures.save(picture, "plots/prepare/montage.png")
    write_metrics("prepare", {"prepare": audit.counts})


if __name__ == "__main__":
    run(main)

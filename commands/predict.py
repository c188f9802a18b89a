"""What does the system on disk say of new images?

Run by `make predict IMAGES=<folder or CSV> OUT=<file>.csv` in a project that has run. It writes a row per image to OUT,
a row per patient to `<OUT>_patients.csv`, and what is to be said of all of them together to `<OUT>_batch.json`. Before
that it appends a row per image to monitor/log.csv, which `make monitor` looks at.
"""

import argparse
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from dvc.exceptions import NotDvcRepoError
from dvc.repo import Repo
from scipy.special import expit, logit
from tqdm import tqdm

from tmv_lib.data.answer import PrepareParams
from tmv_lib.data.unlabelled import load_unlabelled
from tmv_lib.pipeline import log, monitored
from tmv_lib.pipeline.files import for_spreadsheets, write_csv, write_json
from tmv_lib.pipeline.metrics import plain
from tmv_lib.pipeline.params import read
from tmv_lib.pipeline.stage import run
from tmv_lib.prediction import identity, likeness
from tmv_lib.prediction import system as prediction

ANSWERS = {0: "negative", 1: "positive"}
DOCTOR = "to a doctor"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "images", type=Path, help="a folder of PNG, JPEG or DICOM files, or a CSV with a column `path`"
    )
    options.add_argument("--out", type=Path, required=True, help="the CSV to write")
    options.add_argument(
        "--time", default=datetime.now(UTC).isoformat(), help="of these images, ISO 8601; default: now"
    )
    given = options.parse_args()
    if given.out.suffix != ".csv":
        raise ValueError(f"{given.out}: the file to write must end in .csv")
    print("loading networks and policy", file=sys.stderr)
    system = prediction.load()
    require_as_run()
    source = read("params.yaml", "prepare", PrepareParams)
    batch = load_unlabelled(
        given.images,
        size=system.size,
        how=system.how,
        channels=system.channels,
        patient=source.folder.patient if source.source == "folder" else None,
        progress=partial(tqdm, desc="reading"),
    )
    print("scoring cases on record again, to see whether this is still the same system", file=sys.stderr)
    prediction.check(system)
    scored = prediction.score(system, batch.images, progress=partial(tqdm, desc="scoring"))
    readable = batch.cases["problem"] == ""
    print("comparing the batch with the cases calibrated on", file=sys.stderr)
    alike = likeness.compare(system, scored, batch.cases.loc[readable, "patient_id"])
    images = of_images(batch.cases, scored.cases)
    patients = of_patients(images)
    found = of_batch(images, patients, alike) | {"n_files_passed_over": len(batch.passed_over)}
    log_cases(system, images, given.time)
    write_json(given.out.with_name(f"{given.out.stem}_batch.json"), plain(found))
    write_csv(given.out.with_name(f"{given.out.stem}_patients.csv"), for_spreadsheets(patients))
    write_csv(given.out, for_spreadsheets(images))
    print(summary(found))
    if batch.passed_over:
        print(f"{len(batch.passed_over)} files are no images: {', '.join(batch.passed_over[:5])}", file=sys.stderr)
    for row in batch.cases[~readable].itertuples():
        print(f"could not be read: {row.problem}", file=sys.stderr)


def require_as_run() -> None:
    """Raise ValueError where parameters, code, data or policy are not those of the last run, as DVC sees it."""
    try:
        status = Repo(".").status(targets=["dvc.yaml"])  # without that of monitor/, whose log has just grown
    except NotDvcRepoError:
        raise ValueError("this folder is no DVC repository: `predict` runs in the project that has trained") from None
    for stage, reasons in status.items():
        changed = [
            f"{path} ({state if isinstance(state, str) else ', '.join(state)})"
            for reason in reasons
            if isinstance(reason, dict)
            for of in reason.values()
            for path, state in of.items()
        ]
        what = ", ".join(changed) or ", ".join(map(str, reasons))
        raise ValueError(f"stage {stage} is not what its last run left: {what}; `make repro` brings it up to date")


def log_cases(system: prediction.System, images: pd.DataFrame, time: str) -> None:
    """Append a row per image to the log, and once per system what it is to be compared with."""
    parts = identity.digests(system)
    if not monitored.has_reference(parts):
        monitored.add_reference(identity.reference(system), parts)
    rows = images.assign(distance=images[f"distance_{system.policy.members[0]}"], time=time, **parts)
    log.append(monitored.LOG, rows)


def of_images(cases: pd.DataFrame, scored: pd.DataFrame) -> pd.DataFrame:
    """A row per image, read or not: its answer, and what the answer rests on.

    What cannot be read, or is unlike the training images, goes to a doctor.
    """
    readable = (cases["problem"] == "").to_numpy()
    table = cases.join(scored.set_index(cases.index[readable]))
    table["deferred"] = table["deferred"].ne(False)
    answer = table["decision"].map(ANSWERS).where(~table["deferred"], DOCTOR)
    reason = table["reason"].where(readable, "the image could not be read: " + table["problem"])
    members = [name for name in table if str(name).startswith("y_prob_")]
    first = ["image_id", "patient_id", "answer", "reason", "y_prob", *members, "certainty", "decision", "deferred"]
    table = table.assign(answer=answer, reason=reason, deferred=table["deferred"].astype(int))
    table["decision"] = table["decision"].astype("Int64")
    flags = table[["out_of_distribution", "oddity", "not_measured"]]
    flags = flags.assign(out_of_distribution=table["out_of_distribution"].astype("Int64"))
    signals = [name for name in scored if name not in {*first, *flags}]
    return pd.concat([table[first], flags, table[signals]], axis=1)


def of_patients(images: pd.DataFrame) -> pd.DataFrame:
    """A row per patient, over all images of the patient.

    One image that goes to a doctor takes its patient along; otherwise one positive image makes a positive patient. The
    probability is that of the mean log odds, as `calibration` has it of patients; the certainty that of the least
    certain image.
    """

    def one(rows: pd.DataFrame) -> pd.Series:
        z = logit(rows["y_prob"].dropna().clip(1e-6, 1 - 1e-6))
        answers = set(rows["answer"])
        answer = next(word for word in (DOCTOR, "positive", "negative") if word in answers)
        reasons = dict.fromkeys(part for text in rows["reason"] for part in text.split("; ") if part)
        return pd.Series(
            {
                "answer": answer,
                "reason": "; ".join(reasons),
                "y_prob": expit(z.mean()) if len(z) else np.nan,
                "certainty": rows["certainty"].min(),
                "n_images": len(rows),
                "n_to_a_doctor": int((rows["answer"] == DOCTOR).sum()),
                "n_positive": int((rows["answer"] == "positive").sum()),
                "n_negative": int((rows["answer"] == "negative").sum()),
                "n_out_of_distribution": int(rows["out_of_distribution"].fillna(0).sum()),
            }
        )

    return images.groupby("patient_id", sort=False)[list(images.columns)].apply(one).reset_index()


def of_batch(images: pd.DataFrame, patients: pd.DataFrame, alike: likeness.Likeness) -> dict[str, Any]:
    """How many of what, and whether they look like the cases calibrated on."""
    found: dict[str, Any] = {"n_unreadable": int(images["y_prob"].isna().sum())}
    for name, rows in (("images", images), ("patients", patients)):
        counted = rows["answer"].value_counts()
        found[name] = {"n": len(rows)} | {word: int(counted.get(word, 0)) for word in (*ANSWERS.values(), DOCTOR)}
    found["images"]["out_of_distribution"] = int(images["out_of_distribution"].fillna(0).sum())
    return found | {"likeness": {name: test._asdict() for name, test in alike.tests.items()} | {"words": alike.words}}


def summary(found: dict[str, Any]) -> str:
    """The batch in a few lines, from `of_batch`."""
    lines = []
    for name in ("images", "patients"):
        parts = ", ".join(f"{found[name][word]} {word}" for word in (*ANSWERS.values(), DOCTOR))
        lines.append(f"{found[name]['n']} {name}: {parts}")
    unlike = found["images"]["out_of_distribution"]
    lines.append(f"unlike the training images, and so to a doctor: {unlike} images")
    return "\n".join([*lines, found["likeness"]["words"]])


if __name__ == "__main__":
    run(main)

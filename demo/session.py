"""A reader's session in a study: what comes next, what is shown of it, and what is written.

Run by `make demo STUDY=plan.yaml`, which checks the plan against the run on disk and starts the page demo/study.py.
"""

import argparse
import os
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from demo import answers, cases
from demo.disk import Disk
from tmv_lib.pipeline.log import append_row
from tmv_lib.pipeline.params import read
from tmv_lib.pipeline.stage import run
from tmv_lib.readers.plan import StudyParams, draw_cases, order_of, readings_done, steps_of
from tmv_lib.readers.readings import COLUMNS, Reading, read_readings


class Session(NamedTuple):
    """What a reader is asked, in order (`order_of`), and the readings that are there, in the same order."""

    known: cases.Collection
    study: StudyParams
    reader: str
    path: Path
    order: pd.DataFrame
    done: pd.DataFrame


class Place(NamedTuple):
    """What is to be read next: the case's number in the collection, its place, its session, the arm and the step.

    before: the answer and confidence of the first step, at the second one.
    """

    number: int
    position: int
    session: int
    arm: str
    step: str
    before: tuple[str, int] | None


def plan(path: str | Path, known: cases.Collection) -> StudyParams:
    """The plan of a study. Raises ValueError naming what is wrong in it, or lacks in the run."""
    study = read(path, "study", StudyParams)
    try:
        draw_cases(study, known.table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return study


def begin(known: cases.Collection, study: StudyParams, reader: str) -> Session:
    """The session where it was left. Raises ValueError where its file does not belong to plan and run."""
    path = known.disk.root / study.folder / f"{reader}.csv"
    done = read_readings(path, unfinished=True) if path.exists() else pd.DataFrame(columns=COLUMNS)
    order = order_of(study, reader, draw_cases(study, known.table))
    readings_done(str(path), order, done)
    return Session(known, study, reader, path, order, done)


def place(session: Session) -> Place | None:
    """What comes next; None where everything is read."""
    steps, n_done = steps_of(session.order), len(session.done)
    if n_done == len(steps):
        return None
    row, step = steps[n_done]
    asked = session.order.iloc[row]
    ids = session.known.table["image_id"]
    before = None
    if step == "final" and asked["arm"] != "alone":
        last = session.done.iloc[-1]
        before = (str(last["answer"]), int(last["confidence"]))
    number = int(ids.index[ids == asked["case"]][0])
    return Place(number, int(asked["position"]), int(asked["session"]), str(asked["arm"]), step, before)


def opens(session: Session, at: Place) -> datetime | None:
    """When the session of a place opens, where it is another one than that of the case before, and not begun yet."""
    if at.before or at.position == 1 or session.order["session"][at.position - 2] == at.session:
        return None
    last = datetime.fromisoformat(str(session.done["time"].iloc[-1]))
    return last + timedelta(days=session.study.washout_days)


def said(session: Session, at: Place) -> list[str]:
    """What the system says of a case: nothing before the reader has, nor ever to one who reads alone."""
    if at.before is None:
        return []
    case = session.known.table.loc[at.number]
    if at.arm == "deferral" and case["deferred"]:
        return [f"**{answers.DEFERRED}**", f"The reason: {case['reason']}."]
    return [answers.answer(session.known, float(case["y_prob"]), int(case["decision"]))]


def commit(session: Session, at: Place, *, answer: str, confidence: int, seconds: float, time: datetime) -> None:
    """Write a reading to disk, and return once it is there."""
    case = session.known.table.loc[at.number]
    reading = Reading(
        session.reader,
        at.arm,
        at.step,
        case["image_id"],
        case["patient_id"],
        int(case["y_true"]),
        int(case["deferred"]),
        at.position,
        answer,
        confidence,
        round(seconds, 1),
        time.isoformat(timespec="seconds"),
    )
    append_row(session.path, COLUMNS, reading)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("plan", type=Path, help="a YAML file with a section `study`; docs/readers.md")
    given = options.parse_args()
    plan(given.plan, cases.collect(Disk(Path(os.environ.get("TMV_ROOT", ".")).resolve())))
    os.environ["TMV_STUDY"] = str(given.plan.resolve())
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", "demo/study.py"])


if __name__ == "__main__":
    run(main)

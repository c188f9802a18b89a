"""Readings, a row per answer of a doctor on a case: from a study, from the viewer, or from anybody's own list."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from tmv_lib.data.lists import refuse

ARMS = {
    "alone": "alone",
    "system": "with the system",
    "deferral": "with the system and its deferrals",
}
STEPS = ("first", "final")  # the reading before the system's answer is shown, where one is, and the one that counts
ANSWERS = ("yes", "no", "cannot tell")
NEEDED = ["reader", "arm", "case", "y_true", "answer"]
# What may be left out, with what stands in its place: the case's own id for its patient.
OPTIONAL = {
    "step": "final",
    "patient_id": "",
    "deferred": "0",
    "position": "",
    "confidence": "",
    "seconds": "",
    "time": "",
}
COLUMNS = ["reader", "arm", "step", "case", "patient_id", "y_true", "deferred", "position", "answer", "confidence"]
COLUMNS += ["seconds", "time"]


class Reading(NamedTuple):
    """A row of a file of readings; the fields are its `COLUMNS`.

    answer: one of `ANSWERS`, whether the finding is there. confidence: that it is, 0 to 100, or None. deferred: whether
    the system leaves this case to a doctor. position: the place in the reader's order, from 1. seconds: from when the
    case, or the system's answer to it, was shown. time: when it was given, ISO 8601.
    """

    reader: str
    arm: str
    step: str
    case: str
    patient_id: str
    y_true: int
    deferred: int
    position: int
    answer: str
    confidence: int | None
    seconds: float
    time: str


def read_readings(path: str | Path, *, unfinished: bool = False) -> pd.DataFrame:
    """The readings of a CSV, `COLUMNS` with `y_true` and `deferred` as 0 or 1, `confidence` and `seconds` as numbers.

    The index is the row, the header being row 1. unfinished: of a study that goes on; a last row without its end, which
    a killed session left, is no row then. Raises ValueError naming file, row, column and what is allowed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable text ({error})") from None
    whole = text[: text.rfind("\n") + 1]
    if whole != text and not unfinished:
        row = text.count("\n") + 1
        raise ValueError(f"{path}: row {row}: has no end, as a killed session leaves it; remove it, or end its line")
    try:
        table = pd.read_csv(io.StringIO(whole), dtype=str, na_filter=False)
    except ValueError as error:
        raise ValueError(f"{path}: not a readable CSV ({error})") from error
    for name in NEEDED:
        if name not in table:
            raise ValueError(f"{path}: column {name} is missing; the columns are {', '.join(table.columns)}")
    table = table.set_axis(range(2, len(table) + 2)).apply(lambda column: column.str.strip())
    return _typed(path, table.assign(**{name: value for name, value in OPTIONAL.items() if name not in table}))


def _typed(path: str | Path, table: pd.DataFrame) -> pd.DataFrame:
    allowed = {"arm": tuple(ARMS), "step": STEPS, "answer": ANSWERS, "y_true": ("0", "1"), "deferred": ("0", "1")}
    for name, values in allowed.items():
        refuse(path, ~table[name].isin(values), table[name], f"is none of {', '.join(values)}")
    for name in ("reader", "case"):
        refuse(path, table[name] == "", table[name], "is empty")
    for name, most in (("confidence", 100.0), ("seconds", float("inf"))):
        number = pd.to_numeric(table[name], errors="coerce")
        refuse(path, (table[name] != "") & ~number.between(0, most), table[name], f"is not between 0 and {most:g}")
        table[name] = number
    table["patient_id"] = table["patient_id"].where(table["patient_id"] != "", table["case"])
    return table[COLUMNS].astype({"y_true": int, "deferred": int})


def read_all(paths: Sequence[str | Path]) -> pd.DataFrame:
    """The readings of several CSVs, one below the other.

    Raises ValueError as `read_readings`, for a reading that is there twice, and for a case with two truths, patients or
    deferrals.
    """
    tables = [read_readings(path) for path in paths]
    where = [f"{path}: row {row}" for path, of in zip(paths, tables, strict=True) for row in of.index]
    table = pd.concat(tables).set_axis(where)
    for name in ("y_true", "patient_id", "deferred"):
        first = table.groupby("case")[name].transform("first")
        for row, told in table[table[name] != first].iterrows():
            raise ValueError(f"{row}: {name} of case {told['case']!r} is {told[name]}, and {first[row]} in a row above")
    for row, told in table[table.duplicated(["reader", "arm", "step", "case"])].iterrows():
        raise ValueError(
            f"{row}: reader {told['reader']!r} has read case {told['case']!r} in arm {told['arm']} already"
        )
    return table.reset_index(drop=True)

"""Readings, a row per answer of a doctor on a case: from a study, from the viewer, or from anybody's own list."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from tmv_lib.data.lists import refuse
from tmv_lib.pipeline.files import as_headed

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
VIEWER = ["image_id", "answer", "blind"]  # of what the viewer saves; blind: nothing was known of the case


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
    table = _read_text(path, unfinished=unfinished)
    for name in NEEDED:
        if name not in table:
            raise ValueError(f"{path}: column {name} is missing; the columns are {', '.join(table.columns)}")
    return _typed(path, table.assign(**{name: value for name, value in OPTIONAL.items() if name not in table}))


def _read_text(path: str | Path, *, unfinished: bool = False) -> pd.DataFrame:
    """A CSV as text without blanks around it; the index is the row."""
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
        table = as_headed(pd.read_csv(io.StringIO(whole), dtype=str, na_filter=False))
    except ValueError as error:
        raise ValueError(f"{path}: not a readable CSV ({error})") from error
    return table.set_axis(range(2, len(table) + 2)).apply(lambda column: column.str.strip())


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


def of_viewer(path: str | Path, known: pd.DataFrame) -> pd.DataFrame:
    """The readings that the viewer saved in a CSV (`VIEWER`), as `read_readings` gives them: the answers before a
    reveal, of a reader who is called as the file is, in the arm `alone`.

    known: `image_id`, `patient_id`, `y_true`, `deferred` of the cases. Raises ValueError naming the row of a case that
    is not among them.
    """
    table = _read_text(path)
    own = known.set_index("image_id")
    refuse(path, ~table["image_id"].isin(own.index), table["image_id"], "is no case of the run in this folder")
    counted = table[(table["blind"] == "yes") & (table["answer"] != "none")]
    of_case = own.loc[counted["image_id"], ["patient_id", "y_true", "deferred"]].astype(
        {"y_true": int, "deferred": int}
    )
    told = {"reader": Path(path).stem, "arm": "alone", "case": counted["image_id"], "answer": counted["answer"]}
    made = pd.DataFrame(told, index=counted.index).assign(**{name: of_case[name].to_numpy() for name in of_case})
    return _typed(path, made.astype(str).assign(**{n: v for n, v in OPTIONAL.items() if n not in made}))


def is_of_viewer(path: str | Path) -> bool:
    """Whether a CSV has the columns of the viewer."""
    return list(_read_text(path)) == VIEWER


def together(tables: Mapping[Path, pd.DataFrame]) -> pd.DataFrame:
    """The readings of several files, one below the other.

    Raises ValueError for a reader that is there twice, and for a case with two truths, patients or deferrals.
    """
    where = [f"{path}: row {row}" for path, of in tables.items() for row in of.index]
    table = pd.concat(list(tables.values())).set_axis(where)
    for name in ("y_true", "patient_id", "deferred"):
        first = table.groupby("case")[name].transform("first")
        for row, told in table[table[name] != first].iterrows():
            raise ValueError(f"{row}: {name} of case {told['case']!r} is {told[name]}, and {first[row]} in a row above")
    for row, told in table[table.duplicated(["reader", "arm", "step", "case"])].iterrows():
        raise ValueError(
            f"{row}: reader {told['reader']!r} has read case {told['case']!r} in arm {told['arm']} already"
        )
    return table.reset_index(drop=True)

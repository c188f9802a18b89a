"""A year before it happens: cases whose truth is known, played week by week, with a shift planted in a chosen week."""

from datetime import date, timedelta
from typing import NamedTuple

import numpy as np
import pandas as pd

from tmv_lib.monitoring import answer

WEEKS = 52
FIRST_DAY = date(2026, 1, 5)  # a Monday, for a calendar; any would do
LABELS_LATE = 2  # weeks until a case that is due has been read
DIGESTS = dict.fromkeys(answer.DIGESTS, "rehearsal")


class Year(NamedTuple):
    """log and labels as `answer.look` takes them; the log has `week`, from 1, besides."""

    log: pd.DataFrame
    labels: pd.DataFrame


def play(cases: pd.DataFrame, *, per_week: int, shift_week: int | None, rng: np.random.Generator) -> Year:
    """A year of `per_week` patients a week, in random order, each patient at most once.

    cases: a row per image, `image_id`, `patient_id`, `y_true`, `decision`, `deferred`, `certainty`, `distance`,
    `y_prob` and `shifted` (boolean), whose patients come from `shift_week` on; None: nobody of these comes. Raises
    ValueError where the patients are too few.
    """
    before = WEEKS if shift_week is None else shift_week - 1
    comers = []
    for shifted, n_weeks, first in ((False, before, 1), (True, WEEKS - before, before + 1)):
        patients = cases.loc[cases["shifted"] == shifted, "patient_id"].unique()
        if len(patients) < n_weeks * per_week:
            kind = "shifted" if shifted else "other"
            raise ValueError(
                f"{n_weeks} weeks of {per_week} patients need {n_weeks * per_week} {kind} patients, found"
                f" {len(patients)}"
            )
        drawn = rng.choice(patients, n_weeks * per_week, replace=False)
        comers.append(pd.Series(np.repeat(np.arange(first, first + n_weeks), per_week), index=drawn))
    week = pd.concat(comers)
    order = pd.Series(np.arange(len(week)), index=week.index)
    log = cases[cases["patient_id"].isin(week.index)]
    log = log.assign(week=log["patient_id"].map(week), order=log["patient_id"].map(order))
    log = log.sort_values("order", kind="stable").reset_index(drop=True)
    days = [FIRST_DAY + timedelta(weeks=int(one) - 1) for one in log["week"]]
    return Year(log.assign(time=[f"{day}T09:00:00" for day in days], **DIGESTS), log[["image_id", "y_true"]])


def looks(year: Year, reference: pd.DataFrame, params: answer.MonitorParams) -> pd.DataFrame:
    """A look at the end of every week; labels come `LABELS_LATE` weeks late.

    reference: `certainty` and `distance` of patients calibrated on; inputs are not compared where there are none.
    Columns: `week`, `answer`, and per promise and for `inputs` the `evidence`, per promise of risk also `low`, `high`.
    """
    reference, rows = reference.assign(**DIGESTS), []
    for week in range(1, WEEKS + 1):
        log = year.log[year.log["week"] <= week].drop(columns="y_true")
        read = year.log.loc[year.log["week"] <= week - LABELS_LATE, ["image_id", "y_true"]]
        found = answer.look(log, read, reference, params).figures
        row = {"week": week, "answer": found["answer"], "inputs": found["inputs"].get("evidence", np.nan)}
        for name, one in found["promises"].items():
            row |= {name: one["evidence"], f"{name}_risk": (one["risk"].low, one["risk"].high)}
        rows.append(row)
    return pd.DataFrame(rows)


def alarms(weeks: pd.DataFrame, names: list[str]) -> dict[str, int | None]:
    """The week of the first alarm of each column of evidence, and `stop`: of any that says stop."""
    first = {name: weeks.loc[weeks[name] >= 1, "week"].min() for name in names}
    first["stop"] = weeks.loc[weeks["answer"] == "stop", "week"].min()
    return {name: None if pd.isna(week) else int(week) for name, week in first.items()}

"""One loss per patient: images of one patient are not new evidence.

`cases` has a row per image, in the order in which they came: `image_id`, `patient_id`, `time` (ISO 8601), `decision` (0
or 1, missing where there is none), `deferred` (boolean) and `y_true` (0 or 1, missing where it is not known yet). A
patient counts once, with the images of the day of the first; what comes later of the same patient is left out.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tmv_lib.monitoring import audit

Bools = NDArray[np.bool_]
Rule = Callable[[pd.DataFrame], tuple[Bools, Bools]]


def _called(answer: int) -> Rule:
    def rule(cases: pd.DataFrame) -> tuple[Bools, Bools]:
        decided = ~cases["deferred"].to_numpy() & (cases["decision"] == answer).to_numpy()
        return decided, decided & (cases["y_true"] == 1 - answer).to_numpy()

    return rule


def _truly(truth: int) -> Rule:
    def rule(cases: pd.DataFrame) -> tuple[Bools, Bools]:
        own = (cases["y_true"] == truth).to_numpy()
        return own, own & ~cases["deferred"].to_numpy() & (cases["decision"] == 1 - truth).to_numpy()

    return rule


def _referred(cases: pd.DataFrame) -> tuple[Bools, Bools]:
    return np.ones(len(cases), dtype=bool), cases["deferred"].to_numpy()


# Each promise: which images it speaks of, and which of them break it, (n,) boolean both.
PROMISES: dict[str, Rule] = {
    "missed_positives": _called(0),
    "false_alarms": _called(1),
    "missed_of_positives": _truly(1),
    "false_alarms_of_negatives": _truly(0),
    "referrals": _referred,
}
BY_CLASS = ("missed_of_positives", "false_alarms_of_negatives", "referrals")  # what an enriched sample can tell
NO_LABEL = ("referrals",)


def first_visits(cases: pd.DataFrame) -> pd.DataFrame:
    """The cases that count, each image once and each patient with the images of one day, numbered anew.

    A column `patient` is added, the number of the patient in the order of the first image.
    """
    cases = cases[~cases["image_id"].duplicated()]
    patient, names = pd.factorize(cases["patient_id"])
    day = pd.factorize(cases["time"].astype(str).str[:10])[0]
    first = np.empty(len(names), dtype=np.intp)
    first[patient[::-1]] = np.arange(len(cases))[::-1]
    kept = day == day[first[patient]]
    return cases.assign(patient=patient)[kept].reset_index(drop=True)


def of_patients(visits: pd.DataFrame, promise: str, *, due: Bools, rate: float) -> pd.DataFrame:
    """A row per patient of whom the promise speaks and who is to be read, in the order in which they came.

    visits: from `first_visits`. due: from `due`, (n_patients,). Columns: `row`, the row of the first image in visits;
    `low` and `high`, the mean error over the patient's images of which the promise speaks, if every label that is
    missing turned out right, or wrong; `weight`, see `betting.wealth`. A doctor reads every patient with an image that
    was deferred, whatever the lot says (pi = 1); of the others a share `rate` is drawn. Referrals need no reading:
    there everybody counts, at weight 1.
    """
    own, wrong = PROMISES[promise](visits)
    patient, n_patients = visits["patient"].to_numpy(), int(visits["patient"].max()) + 1 if len(visits) else 0

    def counted(rows: Bools) -> NDArray[np.intp]:
        return np.bincount(patient[rows], minlength=n_patients)

    images, row = counted(own), np.zeros(n_patients, dtype=np.intp)
    row[patient[::-1]] = np.arange(len(visits))[::-1]
    missing = counted(own & visits["y_true"].isna().to_numpy()) if promise not in NO_LABEL else 0 * images
    referred = counted(visits["deferred"].to_numpy()) > 0
    there = images > 0
    weight = np.ones(n_patients)
    if promise not in NO_LABEL and rate < 1:
        weight[referred] = rate
        there &= due
    low = counted(wrong)[there] / images[there]
    table = {"row": row[there], "low": low, "high": low + missing[there] / images[there], "weight": weight[there]}
    return pd.DataFrame(table)


def due(visits: pd.DataFrame, *, rate: float, salt: str) -> Bools:
    """Whether each patient (n_patients,) of visits is drawn by lot or has an image that was deferred."""
    names = visits.loc[~visits["patient"].duplicated(), "patient_id"]
    found = np.bincount(visits["patient"], weights=visits["deferred"]) > 0
    found[~found] = audit.drawn(names[~found], rate=rate, salt=salt)
    return found

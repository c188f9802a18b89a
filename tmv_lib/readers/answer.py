"""How well do doctors read alone, with the system, and with the system and its deferrals?"""

from collections.abc import Callable
from contextlib import suppress
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from tmv_lib.readers import obuchowski_rockette
from tmv_lib.readers.obuchowski_rockette import Jackknifed
from tmv_lib.readers.readings import ARMS
from tmv_lib.statistics.estimate import Estimate, mean
from tmv_lib.statistics.ranking import auroc
from tmv_lib.statistics.tests import wilson_interval

TOO_FEW = "no reader has read two patients of each class that it needs"


class Kind(NamedTuple):
    """A figure of a reader: the metric, the columns of a reading that it takes, the classes that it needs, and whether
    it lies between 0 and 1."""

    metric: Callable[..., Any]
    columns: tuple[str, ...]
    classes: tuple[int, ...]
    share: bool = True


# "cannot tell" finds no positive and clears no negative
KINDS = {
    "sensitivity": Kind(mean, ("right",), (1,)),
    "specificity": Kind(mean, ("right",), (0,)),
    "auroc": Kind(auroc, ("y_true", "confidence"), (0, 1)),
    "seconds": Kind(mean, ("seconds",), (), share=False),
}
DECISIONS = ("sensitivity", "specificity")


def prepare(readings: pd.DataFrame) -> pd.DataFrame:
    """The readings that count, with whether they are `right`, and `seconds` of all steps together."""
    together = readings.groupby(["reader", "arm", "case"])["seconds"].transform("sum", min_count=1)
    right = (readings["answer"] == np.where(readings["y_true"] == 1, "yes", "no")).astype(float)
    return readings.assign(right=right, seconds=together)[readings["step"] == "final"]


def analyse(readings: pd.DataFrame) -> dict[str, Any]:
    """All figures of the readings that `read_readings` gives.

    `arms`: of each the figures of `KINDS`, `by_reader` and counts. `differences`: of each two arms, over the readers of
    both. `deferred`: sensitivity and specificity on the cases that the system defers, where readers knew of it, else
    alone.
    """
    counted = prepare(readings)
    of = {arm: counted[counted["arm"] == arm] for arm in ARMS if (counted["arm"] == arm).any()}
    arms = {
        arm: counts(rows) | {name: figure(name, rows) for name in KINDS} | {"by_reader": by_reader(rows)}
        for arm, rows in of.items()
    }
    differences = {
        f"{second}_minus_{first}": {"arm": second, "minus": first, "n_readers": len(_in_both(of[second], of[first]))}
        | {name: figure(name, of[second], of[first]) for name in KINDS}
        for first, second in combinations(of, 2)
    }
    return {"arms": arms, "differences": differences, "deferred": on_deferred(of)}


def on_deferred(of: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Sensitivity and specificity of the doctors on deferred cases, and the arm in which they read them.

    of: the readings of each arm. In the arm `system` they were shown an answer, which nobody sees in use.
    """
    deferred = {arm: of[arm][of[arm]["deferred"] == 1] for arm in ("deferral", "alone") if arm in of}
    for arm, rows in deferred.items():
        if len(rows):
            return {"arm": arm} | counts(rows) | {name: figure(name, rows) for name in DECISIONS}
    return {"absent": "no deferred case was read alone, or with the system and its deferrals"}


def by_reader(rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The figures of each reader of an arm, as far as there are any."""
    found: dict[str, dict[str, float]] = {str(reader): {} for reader in sorted(set(rows["reader"]))}
    for name in KINDS:
        with suppress(ValueError):
            told = _jackknifed(name, [rows])
            for reader, value in zip(told.readers, told.first.values, strict=True):
                found[reader][name] = float(value)
    return found


def counts(rows: pd.DataFrame) -> dict[str, int]:
    """How many readers, readings, cases and positive cases there are."""
    cases = rows.drop_duplicates("case")["y_true"]
    numbers = {"n_readers": rows["reader"].nunique(), "n_readings": len(rows), "n": len(cases)}
    return numbers | {"n_positive": int(cases.sum())}


def figure(name: str, rows: pd.DataFrame, minus: pd.DataFrame | None = None) -> Estimate:
    """A figure of `KINDS` over the readers of an arm, or the difference to another arm over the readers of both.

    rows, minus: prepared readings. Readers count who have read two patients of each class that the figure needs.
    """
    try:
        told = _jackknifed(name, [rows] if minus is None else [rows, minus])
    except ValueError as error:
        return Estimate(absent=str(error))
    if told.second is None:
        return estimate(told.first, told.trials)
    return estimate_difference(told.first.minus(told.second), told.trials)


class _Jackknifed(NamedTuple):
    """A figure of the readers of one arm or of two, and of a share the patients of the rarer class, else 0."""

    readers: list[str]
    first: Jackknifed
    second: Jackknifed | None
    trials: int


def _jackknifed(name: str, arms: list[pd.DataFrame]) -> _Jackknifed:
    """Raises ValueError with the reason where the figure cannot be computed."""
    kind = KINDS[name]
    arms = [arm[arm["y_true"].isin(kind.classes)] if kind.classes else arm for arm in arms]
    if any(arm[list(kind.columns)].isna().any(axis=None) for arm in arms):
        raise ValueError(f"some readings have no {kind.columns[-1]}")
    who = sorted(set.intersection(*(_readers(kind, arm) for arm in arms)))
    if not who:
        raise ValueError(TOO_FEW)
    arms = [arm[arm["reader"].isin(who)] for arm in arms]
    patients = pd.concat(arms).drop_duplicates("patient_id").set_index("patient_id")["y_true"]
    first, *others = [
        obuchowski_rockette.jackknife(
            kind.metric,
            *(arm[column].to_numpy() for column in kind.columns),
            reader=pd.Index(who).get_indexer(arm["reader"]),
            patient=patients.index.get_indexer(arm["patient_id"]),
            shape=(len(patients), len(who)),
        )
        for arm in arms
    ]
    trials = int(patients.value_counts().min()) if kind.share else 0
    return _Jackknifed(who, first, others[0] if others else None, trials)


def estimate(of: Jackknifed, trials: int) -> Estimate:
    """The mean over readers with its 95 % interval.

    trials: of a share, the patients of the rarer class, 0 for what is no share. The interval of a share is made on the
    logit scale (near 1 a symmetric one covers too seldom); where neither readers nor cases differ, it is Wilson's for
    so many trials.
    """
    found = obuchowski_rockette.summarise(of)
    value = found.value
    if not trials:
        return Estimate(value, value - found.reach, value + found.reach)
    if found.error == 0 or value in (0, 1):
        low, high = (float(end) for end in wilson_interval(value * trials, trials))
        return Estimate(value, low, high)
    # d logit(x) / dx = 1 / (x (1 - x))
    reach = found.reach / (value * (1 - value))
    low, high = (float(expit(logit(value) + side * reach)) for side in (-1, 1))
    return Estimate(value, low, high)


def estimate_difference(of: Jackknifed, trials: int) -> Estimate:
    """A difference of two arms with its 95 % interval; where no reader and no case differs from the others, Wilson's
    upper end of 0 in so many trials to both sides."""
    found = obuchowski_rockette.summarise(of)
    exact = found.error == 0 and trials
    reach = float(wilson_interval(0, trials).high) if exact else found.reach
    return Estimate(found.value, found.value - reach, found.value + reach)


def _in_both(rows: pd.DataFrame, others: pd.DataFrame) -> set[str]:
    return set(rows["reader"]) & set(others["reader"])


def _readers(kind: Kind, rows: pd.DataFrame) -> set[str]:
    """Who has read two patients of each class, or any two."""
    classes = kind.classes or (None,)
    of_class = [rows if label is None else rows[rows["y_true"] == label] for label in classes]
    patients = [of.groupby("reader")["patient_id"].nunique() for of in of_class]
    return set.intersection(*(set(of.index[of >= 2]) for of in patients))

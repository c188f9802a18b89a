"""Is it still true? What the log of a system in use and the labels that came back say of its promises."""

from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field, StringConstraints
from scipy.special import logit

from tmv_lib.monitoring import betting, conformal, losses
from tmv_lib.pipeline.params import Params, Seed
from tmv_lib.site.updating import UPDATES, closed_test
from tmv_lib.statistics.arrays import FloatArray
from tmv_lib.statistics.estimate import Estimate

DIGESTS = ["weights", "calibrator", "policy"]
SIGNALS = ["certainty", "distance"]
FEWEST_REFERENCE = 50  # patients calibrated on: with fewer, the first new cases have no rank worth a bet
FEWEST_CLASS = 10  # labelled patients of either class from which an update is proposed
POINTS, STEPS = 200, 30  # of a curve of evidence, and of a confidence sequence
LOOKS = 50_000  # at the evidence of a stream without labels; between two of them it is not looked at

Limit = Annotated[float, Field(gt=0, lt=1)]
Promise = Literal["missed_positives", "false_alarms", "referrals"]


class MonitorParams(Params):
    promises: dict[Promise, Limit]
    audit_rate: Annotated[float, Field(gt=0, le=1)]
    salt: Annotated[str, StringConstraints(min_length=1)]
    alpha: Limit
    seed: Seed


class Look(NamedTuple):
    """One look: the figures, and the two diagrams.

    evidence: `series`, `patients`, `evidence`: log W / log(1 / alpha), 1 from the alarm on. risk: `series`, `patients`
    (labelled), `value`, `bound`.
    """

    figures: dict[str, Any]
    evidence: pd.DataFrame
    risk: pd.DataFrame


def in_use(log: pd.DataFrame) -> pd.DataFrame:
    """The rows of the system that wrote the last one; a system is known by the digests of all its parts."""
    same = (log[DIGESTS] == log[DIGESTS].iloc[-1]).all(axis=1)
    return log[same].reset_index(drop=True)


def look(log: pd.DataFrame, labels: pd.DataFrame, reference: pd.DataFrame, params: MonitorParams) -> Look:
    """Look at the system in use.

    log: a row per image in the order in which they came, see `losses`, with `DIGESTS`, `certainty`, `distance` and
    `y_prob`, missing where unknown. labels: `image_id`, `y_true`. reference: `DIGESTS` and `SIGNALS`, a row per patient
    calibrated on; without rows of this system inputs are not compared.
    """
    own = in_use(log)
    cases = own.assign(y_true=own["image_id"].map(labels.set_index("image_id")["y_true"]))
    visits = losses.first_visits(cases)
    due = losses.due(visits, rate=params.audit_rate, salt=params.salt)
    of_risk = [name for name in params.promises if name not in losses.NO_LABEL]
    promises: dict[str, Any] = {}
    curves, bounds = [], []
    for name, limit in params.promises.items():
        alpha = params.alpha / len(of_risk) if name in of_risk else params.alpha
        patients = losses.of_patients(visits, name, due=due, rate=params.audit_rate)
        every = 1 if name in of_risk else _every(len(patients))
        promises[name], curve = _promise(name, patients, visits, limit, alpha, every)
        curves.append(curve)
        bounds += [_sequence(name, patients, alpha)] if name in of_risk else []
    inputs, curve = _inputs(visits, reference, log, params)
    read = due[visits["patient"]] & visits["y_true"].notna().to_numpy()
    figures = {
        "answer": _answer(promises, inputs, bool(read.any())),
        "n_images": len(own),
        "n_patients": len(due),
        "n_images_not_counted": len(own) - len(visits),
        "n_earlier_systems": len(log[DIGESTS].drop_duplicates()) - 1,
        "n_due": int(due.sum()),
        "alpha": params.alpha,
        "promises": promises,
        "inputs": inputs,
        "reported": _reported(visits, due),
        "update": _update(visits[read], params.audit_rate),
    }
    alarm = pd.DataFrame({"series": "limit: alarm", "patients": [1, max(len(due), 2)], "evidence": 1.0})
    risk = pd.concat(bounds) if bounds else _bound("", [], [], [])
    return Look(figures, pd.concat([*curves, curve, alarm]), risk)


def _promise(
    name: str, patients: pd.DataFrame, visits: pd.DataFrame, limit: float, alpha: float, every: int
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The evidence against one promise; what is pending counts as right, so that it can only delay an alarm."""
    loss, weight = patients["low"].to_numpy(), patients["weight"].to_numpy()
    options: dict[str, Any] = {"against": "at_most", "anew": True, "every": every}
    evidence = betting.wealth(loss, limit, weight=weight, **options) / -np.log(alpha)
    worst = betting.wealth(patients["high"].to_numpy(), limit, weight=weight, **options) / -np.log(alpha)
    known = (patients["low"] == patients["high"]).to_numpy()
    row = patients["row"].to_numpy()
    figures: dict[str, Any] = {
        "status": "broken" if (evidence >= 1).any() else "not_shown_broken",
        "limit": limit,
        "alpha": alpha,
        "n": len(patients),
        "n_labelled": int(known.sum()),
        "n_pending": int((~known).sum()),
        "risk": Estimate(absent="no patient of whom it speaks has a label yet"),
        "evidence": float(evidence.max(initial=0.0)),
        "broken_if_pending_are_wrong": bool((worst >= 1).any()),
    }
    if known.any():
        value = float(np.average(loss[known], weights=weight[known]))
        interval = betting.confidence_interval(loss[known], alpha, weight=weight[known])
        figures["risk"] = Estimate(value, *interval)
    if figures["status"] == "broken":
        after = (int((evidence >= 1).argmax()) + 1) * every
        at = row[after - 1]
        figures |= {"broken_after": after, "broken_at": str(visits["time"].iloc[at])}
    return figures, _curve(name, row[every - 1 :: every], evidence, visits)


def _inputs(
    visits: pd.DataFrame, reference: pd.DataFrame, log: pd.DataFrame, params: MonitorParams
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Whether new cases look like those calibrated on: certainty and distance to training, one image per patient."""
    known = reference[(reference[DIGESTS] == log[DIGESTS].iloc[-1]).all(axis=1)]
    first = visits[~visits["patient"].duplicated()]
    first = first[first[SIGNALS].notna().all(axis=1)]
    if len(known) < FEWEST_REFERENCE or first.empty:
        why = f"signals of {FEWEST_REFERENCE} or more patients calibrated on are needed, and of one new patient"
        nothing = _curve("inputs", np.array([]), np.array([]), visits)
        return {"status": "not_compared", "absent": why}, nothing
    rng, every = np.random.default_rng(params.seed), _every(len(first))
    each = []
    for name in SIGNALS:
        p = conformal.p_values(known[name], first[name], rng=rng)
        each.append(conformal.martingale(p, every=every))
    evidence = (np.logaddexp(*each) - np.log(len(each))) / -np.log(params.alpha)
    found = {
        "status": "changed" if (evidence >= 1).any() else "no_change_shown",
        "n": len(first),
        "evidence": float(evidence.max(initial=0.0)),
    }
    rows = first.index.to_numpy()
    if found["status"] == "changed":
        after = (int((evidence >= 1).argmax()) + 1) * every
        found |= {"changed_after": after, "changed_at": str(first["time"].iloc[after - 1])}
    return found, _curve("inputs", rows[every - 1 :: every], evidence, visits)


def _answer(promises: dict[str, Any], inputs: dict[str, Any], labelled: bool) -> str:
    """`stop`, `look`, `carry_on`, or `no_labels`: what nobody has looked at is not known to be right."""
    broken = [name for name, one in promises.items() if one["status"] == "broken"]
    if any(name not in losses.NO_LABEL for name in broken):
        return "stop"
    waits = any(one["broken_if_pending_are_wrong"] and one["n_labelled"] for one in promises.values())
    if broken or inputs["status"] == "changed" or waits:
        return "look"
    return "carry_on" if labelled else "no_labels"


def _reported(visits: pd.DataFrame, due: losses.Bools) -> dict[str, int]:
    """Labels of patients whom nobody had to read: they came because something was noticed, and are kept apart."""
    apart = visits[~due[visits["patient"]] & visits["y_true"].notna()]
    return {"n_images": len(apart), "n_wrong": int((apart["decision"] != apart["y_true"]).sum())}


def _update(read: pd.DataFrame, rate: float) -> dict[str, Any]:
    """The update of the ensemble's probability that the labels support, by the closed test of `site`.

    A patient with a deferred image is read in any case and the others at the audit's rate, so that each counts by the
    inverse of that, all of them together as much as the sample is worth (Kish).
    """
    read = read[read["y_prob"].notna()]
    each = read.groupby("y_true")["patient"].nunique()
    if any(each.get(y_true, 0) < FEWEST_CLASS for y_true in (0, 1)):
        return {"choice": "too_few_labels", "needed_per_class": FEWEST_CLASS}
    referred = read.groupby("patient")["deferred"].transform("any")
    weight = np.where(referred, rate, 1.0)
    weight *= weight.sum() / (weight**2).sum()
    score = logit(read["y_prob"].clip(1e-6, 1 - 1e-6))
    found = closed_test(read["y_true"], score, groups=read["patient"], weights=weight)
    update = {"choice": UPDATES[found.choice[0]], "n_images": len(read), "n_patients": int(read["patient"].nunique())}
    return update | {"intercept": float(found.intercept[0]), "slope": float(found.slope[0])}


def _every(n: int) -> int:
    return max(1, n // LOOKS)


def _curve(name: str, row: FloatArray, evidence: FloatArray, visits: pd.DataFrame) -> pd.DataFrame:
    """At most `POINTS` points of a curve of evidence, the highest of each stretch, over all patients that came."""
    table = pd.DataFrame({"patients": visits["patient"].to_numpy()[row[: len(evidence)].astype(int)] + 1})
    table = table.assign(series=name, evidence=evidence)
    stretch = np.arange(len(table)) * POINTS // max(len(table), 1)
    highest = table.groupby(stretch)["evidence"].idxmax()
    return table.loc[highest, ["series", "patients", "evidence"]]


def _sequence(name: str, patients: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """The confidence sequence of the risk, at `STEPS` numbers of labelled patients."""
    x, v = patients.loc[patients["low"] == patients["high"], ["low", "weight"]].to_numpy().T
    ends = np.unique(np.linspace(0, len(x), STEPS + 1).astype(int))[1:]
    intervals = [betting.confidence_interval(x[:n], alpha, weight=v[:n]) for n in ends]
    return _bound(name, ends, [low for low, _ in intervals], [high for _, high in intervals])


def _bound(name: str, patients: Any, low: list[float], high: list[float]) -> pd.DataFrame:
    sides = [
        pd.DataFrame({"series": f"{name}, {side}", "patients": patients, "risk": values})
        for side, values in (("at least", low), ("at most", high))
    ]
    return pd.concat(sides)

"""What can be promised of a policy, and whether the promise holds at another place.

Three promises, because one error rate over both answers says nothing where a finding is rare: of the cases called
negative at most so many are positive, of those called positive at most so many are negative, and of all positives at
least so many are not missed (a case that goes to a doctor is not). All of them hold together with probability 1 - delta
over the calibration patients.

Images of one patient are not independent, so one image stands for a patient, and shares are of patients. Which one is
not left to chance: p-values are averaged over many lots and doubled, which is valid whatever their dependence
(Rueschendorf 1982; Vovk & Wang 2020).

`cases` has a row per image: `patient_id`, `y_true`, `certainty`, `decision` (0 or 1) and `out_of_distribution`
(boolean): such a case is never decided.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import binom

from tmv_lib.deferral import selective
from tmv_lib.pipeline.record import Figures
from tmv_lib.statistics.arrays import FloatArray, IntArray
from tmv_lib.statistics.estimate import percent
from tmv_lib.statistics.resampling import WHOLE

LOTS = 2000  # ways to let one image stand for each patient: with 200 a promise near its level hung on the seed
STEPS = 20  # thresholds of a promise's grid
MOST_PATIENTS = 1_000_000  # beyond this "no number of patients would do"


class Promise(NamedTuple):
    """One promise about a policy.

    status: `kept` by the policy as it is; `kept_above` a stricter threshold; `not_shown` with these patients; `vacuous`
    where a constant answer would keep it; `no_case` where there is nothing that it speaks of. limit: largest share that
    may be wrong. level: the chance that this promise is wrong. threshold: certainty from which it is kept, None where
    it is not. n_patients, errors: whom it speaks of among the calibration patients at that threshold (the policy's own
    where it is not kept), one image each, means over the lots. p_value: merged over the lots. patients_wanted: about
    how many calibration patients it would take if the error rate stays what it is; None where none would do, or kept.
    """

    status: str
    limit: float
    level: float
    threshold: float | None = None
    n_patients: float = 0
    errors: float = 0
    p_value: float = 1.0
    patients_wanted: int | None = None


class Standing(NamedTuple):
    """Whether a promise holds where labels of other patients are known.

    verdict: `broken` where its share of errors is shown to lie above the limit, `holds` where it is shown to lie below,
    else `cannot_tell`; each wrong in at most a share delta of places. low, high: the errors' share lies above the one,
    and below the other, each with probability 1 - delta. patients_needed: about how many it would take to tell if the
    share stays what it is; None where the verdict is clear or no number would do.
    """

    verdict: str
    n_patients: float
    errors: float
    low: float
    high: float
    patients_needed: int | None


@dataclass(frozen=True)
class Lots:
    """Ways to let one image stand for each patient; one way alone where every patient has one image.

    patient: that of each case, (n,). rows: of one image per patient, (number, patients), drawn once for every question;
    of more than 1,000 patients None, and each count is drawn anew: patients who have as many images, as many of them
    spoken of and as many that break the promise, are alike, so that a count is a sum of few multinomial ones. Each
    p-value is as valid, for it is merged by itself.
    """

    patient: IntArray
    n_patients: int
    number: int
    rows: IntArray | None
    rng: np.random.Generator

    def count(self, own: np.ndarray, wrong: np.ndarray) -> tuple[IntArray, IntArray]:
        """How many patients one of `own` (n,) stands for, and one of `wrong` among these, of each way (number,)."""
        if self.rows is not None:
            return own[self.rows].sum(axis=1), wrong[self.rows].sum(axis=1)
        of_each = (self.patient, self.patient[own], self.patient[wrong])
        counts = np.stack([np.bincount(patient, minlength=self.n_patients) for patient in of_each])
        alike = counts[0] + (counts[0].max() + 1) * (counts[1] + (counts[0].max() + 1) * counts[2])
        _, first, n_alike = np.unique(alike, return_index=True, return_counts=True)
        size, of_own, of_wrong = counts[:, first]
        shares = np.stack([of_own - of_wrong, of_wrong, size - of_own], axis=1) / size[:, None]
        right, broken, _ = self.rng.multinomial(n_alike, shares, size=(self.number, len(n_alike))).sum(axis=1).T
        return right + broken, broken


KEPT = ("kept", "kept_above")  # statuses of a promise that is made

Rule = Callable[[pd.DataFrame, float], tuple[np.ndarray, np.ndarray]]


def _called(answer: int) -> Rule:
    def rule(cases: pd.DataFrame, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        called = (decided(cases, threshold) & (cases["decision"] == answer)).to_numpy()
        return called, called & (cases["y_true"] != answer).to_numpy()

    return rule


def _missed_of_positives(cases: pd.DataFrame, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    positive = (cases["y_true"] == 1).to_numpy()
    return positive, positive & (decided(cases, threshold) & (cases["decision"] == 0)).to_numpy()


# Each promise: which cases it speaks of at a threshold, and which of them break it, (n,) boolean both.
PROMISES: dict[str, Rule] = {
    "missed_positives": _called(0),
    "false_alarms": _called(1),
    "sensitivity": _missed_of_positives,
}

# What each promise says, of its limit.
SAYS: dict[str, Callable[[float], str]] = {
    "missed_positives": lambda limit: f"of the patients it calls negative at most {percent(limit)} are positive",
    "false_alarms": lambda limit: f"of the patients it calls positive at most {percent(limit)} are negative",
    "sensitivity": lambda limit: f"at least {percent(1 - limit)} of positive patients are found or read by a doctor",
}


def decided(cases: pd.DataFrame, threshold: float) -> pd.Series:
    """Which cases a policy with this threshold decides itself, (n,) boolean."""
    return (cases["certainty"] >= threshold) & ~cases["out_of_distribution"]


def promise(
    cal: pd.DataFrame,
    val: pd.DataFrame,
    *,
    threshold: float,
    limits: dict[str, float],
    delta: float,
    rng: np.random.Generator,
) -> dict[str, Promise]:
    """Certify each promise on `cal` for the policy with this threshold, or for the least strict one that can be.

    limits: by promise, the largest share of errors, in (0, 1). val: cases that shape the grid of thresholds and say
    which promises a constant answer would keep; none of their patients may be in `cal`. Learn-then-Test with a fixed
    sequence (Angelopoulos et al. 2021) from the strictest threshold down to the policy's own, the promises that are
    worth making each at delta / their number, so that all hold together at 1 - delta.
    """
    worth = {name: _worth_making(name, val, threshold, limit) for name, limit in limits.items()}
    level = delta / max(1, sum(worth.values()))
    lots = draw_lots(cal["patient_id"], rng=rng)
    return {
        name: _certify(name, cal, val, lots, threshold=threshold, limit=limit, level=level)
        if worth[name]
        else Promise("vacuous", limit, level)
        for name, limit in limits.items()
    }


def stand(
    name: str, cases: pd.DataFrame, *, threshold: float, limit: float, delta: float, rng: np.random.Generator
) -> Standing:
    """Whether the promise `name`, a key of `PROMISES`, holds among these labelled cases of another place.

    Exact binomial tests, one image per patient, merged over the lots. Raises ValueError where it speaks of no case.
    """
    lots = draw_lots(cases["patient_id"], rng=rng)
    n, k = _counts(name, cases, lots, threshold)
    if not n.any():
        raise ValueError("there is no such case")

    def at_least(share: float) -> float:
        return merged(binom.sf(k - 1, n, share))

    def at_most(share: float) -> float:
        return merged(binom.cdf(k, n, share))

    edge = 1e-9
    low = brentq(lambda r: at_least(r) - delta, edge, 1 - edge, xtol=1e-6) if at_least(edge) < delta else 0.0
    high = brentq(lambda r: at_most(r) - delta, edge, 1 - edge, xtol=1e-6) if at_most(1 - edge) < delta else 1.0
    verdict = "broken" if at_least(limit) <= delta else "holds" if at_most(limit) <= delta else "cannot_tell"
    needed = _patients(k, n, lots, limit=limit, delta=delta) if verdict == "cannot_tell" else None
    return Standing(verdict, float(n.mean()), float(k.mean()), float(low), float(high), needed)


def _patients(k: IntArray, n: IntArray, lots: Lots, *, limit: float, delta: float) -> int | None:
    """`patients_to_tell` of these counts, times all patients that come along with one that the promise speaks of."""
    needed = patients_to_tell(k.sum() / n.sum(), limit=limit, delta=delta / 2 if lots.number > 1 else delta)
    return None if needed is None else int(np.ceil(needed * lots.n_patients / n.mean()))


def patients_to_tell(rate: float, *, limit: float, delta: float) -> int | None:
    """The least number of patients at which an error rate `rate`, met exactly, tells the limit broken or kept.

    None where the rate is the limit, or more than a million would be needed.

    >>> patients_to_tell(0.0, limit=0.05, delta=0.1)
    45
    """
    n = np.unique(np.geomspace(1, MOST_PATIENTS, 4000).astype(int))
    k = np.round(rate * n)
    enough = (binom.cdf(k, n, limit) if rate < limit else binom.sf(k - 1, n, limit)) <= delta
    if rate == limit or not enough.any():
        return None
    return int(n[enough.argmax()])


def draw_lots(groups: pd.Series, *, rng: np.random.Generator) -> Lots:
    """2,000 ways to let one image stand for each patient, or the only one."""
    patient, names = pd.factorize(groups)
    number, rows = 1 if len(names) == len(groups) else LOTS, None
    if len(names) <= WHOLE:
        order = np.argsort(patient, kind="stable")
        size = np.bincount(patient)
        first = np.cumsum(size) - size
        rows = order[first + (rng.random((number, len(names))) * size).astype(int)]
    return Lots(patient, len(names), number, rows, rng)


def merged(p_values: FloatArray) -> float:
    """One p-value from those of several lots (lots,): twice their mean; of one lot its own."""
    return float(p_values[0]) if len(p_values) == 1 else min(1.0, 2 * float(p_values.mean()))


def about(n: float) -> str:
    """A number of patients that rests on an estimate, to two digits.

    >>> about(38_376)
    'about 38,000'
    """
    return f"about {float(f'{n:.2g}'):,.0f}"


def sentences(figures: Figures) -> list[str]:
    """The promises in words, from their values as `ensemble` writes them; what is not worth making is not printed."""
    if figures["lapses"]:
        return ["Nothing is promised: the probabilities were cross-fitted at the site, a procedure and not one policy."]
    made = {name: figures[name] for name in PROMISES if figures[name]["status"] != "vacuous"}
    words = [_sentence(name, entry, figures["delta"]) for name, entry in made.items()]
    if sum(entry["status"] in KEPT for entry in made.values()) > 1:
        confidence = percent(1 - figures["delta"])
        words.append(f"All of this together with {confidence} confidence, for patients like those of cal.")
    if made:
        words.append("One image stands for a patient; which one decides nothing.")
    if figures.get("site_looks_different"):  # left out where the site was not looked at
        words.append("The images of test look different from those of val and cal; whether that harms is not known.")
    return words or ["Nothing is promised: a constant answer would keep every promise that was asked for."]


def _sentence(name: str, entry: Figures, delta: float) -> str:
    claim, counted = SAYS[name](entry["limit"]), f"{entry['errors']:.1f} of {entry['n_patients']:.0f} patients break it"
    sure = f"with {percent(1 - entry['level'], 1)} confidence"
    if entry["status"] == "no_case":
        return f"Not promised that {claim}: there is no such case."
    if entry["status"] == "not_shown":
        wanted = entry.get("patients_wanted")  # left out where no number would do
        more = f"{about(wanted)} calibration patients would be needed" if wanted else "no number of patients would do"
        return f"Not promised that {claim}: in cal {counted}; {more}.{_standing(entry, delta)}"
    above = f" from a certainty of {entry['threshold']:.2f} on" if entry["status"] == "kept_above" else ""
    return f"Promised{above}, {sure}: {claim} (in cal {counted}).{_standing(entry, delta)}"


def _standing(entry: Figures, delta: float) -> str:
    if "on_test" not in entry:  # it speaks of no case of test
        return ""
    one = entry["on_test"]
    words = {"holds": "it holds", "broken": "it is broken" if entry["status"] in KEPT else "it would be broken"}
    more = f"; {about(one['patients_needed'])} patients would tell" if "patients_needed" in one else ""
    return (
        f" On test {words.get(one['verdict'], 'one cannot tell')}: {one['errors']:.1f} of {one['n_patients']:.0f}"
        f" ({percent(one['low'], 1)} to {percent(one['high'], 1)}, {percent(1 - 2 * delta)} interval){more}."
    )


def _worth_making(name: str, val: pd.DataFrame, threshold: float, limit: float) -> bool:
    """Whether an answer that never looks at the case would break the promise, by the prevalence of validation.

    Calling everybody positive keeps any sensitivity, so that one is worth making of a policy that calls cases negative.
    """
    if name == "sensitivity":
        return bool((decided(val, threshold) & (val["decision"] == 0)).any())
    prevalence = float((val["y_true"] == 1).mean())
    return (prevalence if name == "missed_positives" else 1 - prevalence) > limit


def _certify(
    name: str, cal: pd.DataFrame, val: pd.DataFrame, lots: Lots, *, threshold: float, limit: float, level: float
) -> Promise:
    n, k = _counts(name, cal, lots, threshold)
    if not n.any():
        return Promise("no_case", limit, level)
    passed = None
    for step in _grid(name, val, int(n.mean()), threshold=threshold, limit=limit, level=level):
        n_step, k_step = _counts(name, cal, lots, step)
        p_value = merged(binom.cdf(k_step, n_step, limit))
        if p_value > level:
            break
        status, counts = "kept" if step == threshold else "kept_above", (float(n_step.mean()), float(k_step.mean()))
        passed = Promise(status, limit, level, float(step), *counts, p_value)
    if passed:
        return passed
    wanted = _patients(k, n, lots, limit=limit, delta=level) if k.sum() / n.sum() < limit else None
    p_value = merged(binom.cdf(k, n, limit))
    return Promise("not_shown", limit, level, None, float(n.mean()), float(k.mean()), p_value, wanted)


def _grid(name: str, val: pd.DataFrame, n: int, *, threshold: float, limit: float, level: float) -> FloatArray:
    """Thresholds from strict to the policy's own: quantiles of validation's certainty, from where n suffice."""
    own, wrong = PROMISES[name](val, threshold)
    certainty = val["certainty"].to_numpy()[own]
    if name == "sensitivity" or not certainty.size:  # stricter thresholds only hand over more
        return np.array([threshold])
    start = selective.best_start(wrong[own].astype(float), certainty, n=n, risk=limit, delta=level)
    return np.append(selective.coverage_grid(certainty, start=start, n_steps=STEPS)[:-1], threshold)


def _counts(name: str, cases: pd.DataFrame, lots: Lots, threshold: float) -> tuple[IntArray, IntArray]:
    """Of each lot how many cases the promise speaks of, and how many break it, (lots,)."""
    return lots.count(*PROMISES[name](cases, threshold))

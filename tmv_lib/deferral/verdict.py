"""Should this policy be used? The answer, from tested differences of what it costs, in values; and the sentence made
of them, which card, viewer and command line show.
"""

from typing import Any

import numpy as np
import pandas as pd

from tmv_lib.deferral.costs import Prices, case_costs
from tmv_lib.deferral.guarantee import about
from tmv_lib.pipeline.record import Figures
from tmv_lib.statistics.arrays import FloatArray
from tmv_lib.statistics.estimate import Estimate, Resampler, mean, percent
from tmv_lib.statistics.resampling import Bootstrap, bootstrap, generator
from tmv_lib.statistics.tests import Z_95

USE, DO_NOT_USE, CANNOT_TELL = "use", "do_not_use", "cannot_tell"
WORTHWHILE = 0.05  # of a rival's cost: what a policy must be able to save to be of any use
POWER_80 = 0.8416  # standard deviations that a test with 80 % power stands above its boundary
MOST_MISSED = 0.5  # share of the positives beyond which a policy is of no use, whatever it costs
SELDOM = 0.01  # share of the cases below which an answer is as good as never given

NOBODY = "all_called_negative"
# What a policy must be cheaper than, in words.
RIVALS = {
    "doctor_reads_all": "a doctor who reads every case",
    "first_member_decides_all": "the first member alone deciding every case",
    "all_called_positive": "calling every case positive",
    NOBODY: "calling every case negative",
}


def judge(cases: pd.DataFrame, prices: Prices, resampler: Resampler) -> dict[str, Any]:
    """The verdict on a policy by labelled cases, with every comparison behind it.

    cases: a row per image as in `tmv_lib.deferral.evaluation`, with `baseline`, the first member's decision.

    `answer`: `use` where the policy costs less than every one of `RIVALS`, each difference's 95 % interval over
    patients below 0 (all must be, so none needs a correction); `do_not_use` where it costs more than one of them, or
    where even the favourable end saves less than 5 % of what reading everything or a constant answer costs, both by
    intervals corrected for the number of rivals (Bonferroni), or where it is shown to miss more than half of the
    positives, as calling every case negative would; `cannot_tell` otherwise. Upper ends are those with one
    more missed positive than was seen: resamples of few misses know too little of them. `because_of`: the rivals that
    decide. `patients_needed`: about how many it would take to tell with 80 % power if the differences are what they
    are; absent where the answer is clear or no number would do.
    """
    y_true, deferred = cases["y_true"].to_numpy(), cases["deferred"].to_numpy(dtype=bool)
    of_case, decision = prices.of(y_true), cases["decision"].to_numpy()
    cost = case_costs(y_true, decision, deferred=deferred, **of_case)
    rivals = {
        "doctor_reads_all": np.asarray(of_case["review"], dtype=float),
        "first_member_decides_all": case_costs(y_true, cases["baseline"], **of_case),
        "all_called_positive": case_costs(y_true, np.ones(len(cases)), **of_case),
        "all_called_negative": case_costs(y_true, np.zeros(len(cases)), **of_case),
    }
    against, worse, useless = dict[str, Any](), [], []
    for name, rival in rivals.items():
        difference, lowest = _compare(cost, rival, prices.cost_fn, resampler, level=0.025 / len(rivals))
        against[name] = {"cost": float(rival.mean()), "difference": difference}
        if lowest > 0:
            worse.append(name)
        if lowest > -WORTHWHILE * rival.mean() and name != "first_member_decides_all":
            useless.append(name)
    positive = y_true == 1
    missed = resampler.among(positive).estimate(mean, (~deferred & (decision == 0))[positive].astype(float))
    misses_most = missed.low is not None and missed.low > MOST_MISSED
    undecided = [name for name, entry in against.items() if entry["difference"].high >= 0]
    verdict: dict[str, Any] = {"answer": USE, "because_of": "", "cost": float(cost.mean()), "missed": missed}
    if worse or useless or misses_most:
        because_of = " ".join(worse) or ("misses_most" if misses_most else " ".join(useless))
        verdict |= {"answer": DO_NOT_USE, "because_of": because_of, "is_dearer": bool(worse)}
    elif undecided:
        differences = [against[name]["difference"] for name in undecided]
        verdict |= {"answer": CANNOT_TELL, "because_of": " ".join(undecided)}
        verdict["patients_needed"] = _patients_needed(differences, len(np.unique(resampler.groups)))
    return verdict | {"good_for": _good_for(cases), "against": against}


def _compare(
    cost: FloatArray, rival: FloatArray, miss: float, resampler: Resampler, *, level: float
) -> tuple[Estimate, float]:
    """Mean cost minus a rival's, its upper end with one more missed positive; and the quantile `level` of resamples."""
    _, patient = np.unique(resampler.groups, return_inverse=True)

    def drawn(values: FloatArray, groups: np.ndarray) -> Bootstrap:
        rng = generator(resampler.seed, "resamples")
        return bootstrap(mean, values, groups=groups, n_resamples=resampler.n_resamples, rng=rng)

    own = drawn(cost - rival, patient)
    high = drawn(np.append(cost - rival, miss - rival.mean()), np.append(patient, patient.max() + 1)).high
    difference = Estimate(float((cost - rival).mean()), own.low, max(own.high, high))
    return difference, float(np.quantile(own.samples, level))


def _patients_needed(differences: list[Estimate], n_patients: int) -> int | Estimate:
    ends = [one.ends for one in differences]
    if any(value >= 0 for value, *_ in ends):
        return Estimate(absent="it saves nothing here against one of them: no number of such patients would do")
    # n (z_0.975 + z_0.8)^2 (standard error / difference)^2, the standard error read off the interval
    ratios = [(high - low) / (2 * Z_95) / value for value, low, high in ends]
    return int(np.ceil(n_patients * max(((Z_95 + POWER_80) * ratio) ** 2 for ratio in ratios)))


def _good_for(cases: pd.DataFrame) -> dict[str, Any]:
    """Of each answer how often it is given, as a share of all cases, and how often it is wrong; absent if seldom."""
    result: dict[str, Any] = {"prevalence": float(cases["y_true"].mean())}
    for name, label in (("called_negative", 0), ("called_positive", 1)):
        own = cases[~cases["deferred"] & (cases["decision"] == label)]
        wrong = {"wrong": float((own["y_true"] != label).mean())} if len(own) else {}
        result[name] = {"share": len(own) / len(cases)} | wrong
    return result


def sentences(verdict: Figures, *, cases: str = "cases", positive: str = "a positive") -> list[str]:
    """The verdict in words: what to do, why, and what the policy does. cases, positive: what they are called."""
    against, names = verdict["against"], verdict["because_of"].split()
    good, cost = verdict["good_for"], f"{verdict['cost']:.3g}"
    if verdict["answer"] == USE:
        head = f"Use it for {cases} like these, at these prices."
        nearest = max(against, key=lambda name: against[name].estimate("difference").high)
        why = f"It costs {cost} per case, less than every alternative; the nearest is {_compared(against, nearest)}."
    elif verdict["answer"] == DO_NOT_USE:
        head = f"Do not use it for {cases} like these, at these prices."
        if names == ["misses_most"]:
            missed = verdict.estimate("missed")
            share, low, high = map(percent, missed.ends)
            why = (
                f"It misses {share} of the positives ({low} to {high}), much as calling every case negative would. It"
                f" costs {cost} per case, beside {_compared(against, NOBODY)}."
            )
        else:
            kind = "costs more than" if verdict["is_dearer"] else "saves nothing worth having against"
            why = f"At {cost} per case it {kind} {_compared(against, names[0])}."
    else:
        head = "Cannot tell yet whether to use it."
        rivals = ", or ".join(_compared(against, name) for name in names)
        needed = verdict.estimate("patients_needed").value
        why = f"At {cost} per case it was not shown to cost less than {rivals}. " + (
            f"If the differences are what they are, {about(needed)} patients would tell."
            if needed is not None
            else "If the differences are what they are, no number of such patients would show a saving."
        )
    return [head, why, _what_it_does(good, positive)]


def _compared(against: Figures, name: str) -> str:
    one = against[name].estimate("difference")
    ends = f"difference {one.value:+.3f}, {one.low:+.3f} to {one.high:+.3f}"
    return f"{RIVALS[name]} ({against[name]['cost']:.3g}; {ends})"


def _what_it_does(good: Figures, positive: str) -> str:
    negative, called = good["called_negative"], good["called_positive"]
    handed = 1 - negative["share"] - called["share"]
    parts = []
    if negative["share"] >= SELDOM:
        parts.append(
            f"calls {percent(negative['share'])} of the cases negative, {percent(negative['wrong'], 1)} of them wrongly"
            f" (of all cases {percent(good['prevalence'], 1)} have {positive})"
        )
    if called["share"] >= SELDOM:
        parts.append(f"calls {percent(called['share'])} positive, {percent(called['wrong'], 1)} of them wrongly")
    seldom = [word for word, one in (("negative", negative), ("positive", called)) if one["share"] < SELDOM]
    if seldom:
        parts.append(f"calls hardly any case {' or '.join(seldom)}")
    return f"It {', '.join(parts)}, and hands {percent(handed)} to a doctor."

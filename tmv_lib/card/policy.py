"""The sections of the trust card that are about the policy: verdict, when to use it and when not, promises, costs."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tmv_lib.card.facts import Facts
from tmv_lib.card.words import NOT_MEASURED, counted, few, number, share
from tmv_lib.deferral import guarantee, verdict
from tmv_lib.pipeline.record import Figures
from tmv_lib.statistics.estimate import Estimate

Metrics = Mapping[str, Figures | None]
Table = list[list[str]]

OF_HUNDRED = {  # in the order in which they are drawn, with how they are told apart in grey
    "positive_called_positive": ("positive, called positive", "right"),
    "negative_called_negative": ("negative, called negative", "right"),
    "positive_called_negative": ("positive, missed", "missed"),
    "negative_called_positive": ("negative, called positive", "alarm"),
    "positive_deferred": ("positive, to a doctor", "doctor"),
    "negative_deferred": ("negative, to a doctor", "doctor"),
}
CLASSES = {"y_true: positive": "positives", "y_true: negative": "negatives"}
WIDENING = {"widens": "widens the gap", "narrows": "narrows the gap", "not_told_apart": "not told apart"}
YARDSTICKS = {
    "random_deferral_cost": "random referral",
    "margin_deferral_cost": "the margin",
    "plain_margin_deferral_cost": "the plain margin |2p - 1|",
    "oracle_deferral_cost": "perfect foresight",
}
MOST_SUBGROUPS = 6


class Section(NamedTuple):
    """A question of the card with what answers it; the first row of a table is its head.

    answered: whether anything but "not measured" stands in it.
    """

    key: str
    title: str
    stages: str
    words: Sequence[str] = ()
    tables: Sequence[Table] = ()
    answered: bool = True


def not_measured(key: str, title: str, stages: str, what: str) -> Section:
    return Section(key, title, stages, [f"{what}: {NOT_MEASURED}."], answered=False)


def of_hundred(counts: Mapping[str, int]) -> dict[str, int]:
    """These counts as whole numbers of 100 that sum to 100, by largest remainders; all 0 where there is none.

    >>> of_hundred({"right": 2, "wrong": 1, "deferred": 0})
    {'right': 67, 'wrong': 33, 'deferred': 0}
    """
    total = sum(counts.values())
    if total == 0:
        return dict.fromkeys(counts, 0)
    exact = {name: 100 * count / total for name, count in counts.items()}
    whole = {name: int(part) for name, part in exact.items()}
    for name in sorted(exact, key=lambda name: whole[name] - exact[name])[: 100 - sum(whole.values())]:
        whole[name] += 1
    return whole


def _closed(clauses: list[str]) -> list[str]:
    return [*(f"{clause};" for clause in clauses[:-1]), f"{clauses[-1]}."]


def answer(ensemble: Figures | None, facts: Facts) -> Section:
    if ensemble is None:
        return not_measured("verdict", "Verdict", "ensemble", "Verdict")
    words = verdict.sentences(ensemble["verdict"], cases=facts.cases, positive=facts.positive)
    return Section("verdict", "Verdict", "ensemble", words)


def use(ensemble: Figures | None, facts: Facts) -> list[str]:
    if ensemble is None:
        return _closed([facts.text("intended_use"), f"when it may decide: {NOT_MEASURED}"])
    found = ensemble["deferral"]
    cost = found["cost"]
    source = {
        "prices": "what these prices ask for",
        "budget": f"what a budget of {found.get('budget', 0):.0%} referrals leaves",
        "params": f"set by hand; these prices ask for {found['chow_threshold']:.2f}, and it is the cheapest where a"
        f" review costs {found['chow_review_price']:.2f}",
    }[found["threshold_from"]]
    return _closed(
        [
            facts.text("intended_use"),
            f"its certainty in the case is {found['threshold']:.3g} or more ({source}), and a doctor reads every other"
            " case",
            f"a missed positive costs you about {cost['false_negative']:g}, a false alarm {cost['false_positive']:g}"
            f" and a review {cost['review']:g}. On average a review of the referred is worth"
            f" {number(found.estimate('break_even_review_price'))}",
        ]
    )


def do_not_use(metrics: Metrics, facts: Facts) -> list[str]:
    """Each line with the figure that forbids it; nothing that one learns only by reading."""
    clauses = [facts.text("not_for")]
    if ensemble := metrics["ensemble"]:
        clauses += _forbidden_by_promises(ensemble["guarantee"]) + _forbidden_by_policy(ensemble["deferral"])
    if explanations := metrics["explanations"]:
        members = {name: explanations["explanations"][name] for name in explanations["explanations"]}
        unusable = [name for name, one in members.items() if "verdict" in one and not one["verdict"]["usable"]]
        clauses += [f"you take a map for the reason ({few(unusable)})"] if unusable else []
    if missing := [stage for stage, figures in metrics.items() if figures is None]:
        clauses.append(f"you would rely on what was {NOT_MEASURED}: {', '.join(missing)}")
    return _closed(clauses)


def _forbidden_by_promises(promises: Figures) -> list[str]:
    if promises["lapses"]:
        return []
    made = {name: promises[name] for name in guarantee.PROMISES}
    kept = {name: one for name, one in made.items() if one["status"] in guarantee.KEPT}
    broken = [
        f"you rely on the promise that {guarantee.SAYS[name](one['limit'])}: on test it is broken"
        for name, one in kept.items()
        if "on_test" in one and one["on_test"]["verdict"] == "broken"
    ]
    nothing = ["you must promise an error rate: nothing could be promised with these calibration patients"]
    return broken if kept else nothing


def _forbidden_by_policy(found: Figures) -> list[str]:
    clauses = []
    if not found["deferral_can_pay"]:
        reader, review = found["reader"], found["cost"]["review"]
        clauses.append(
            f"you hand cases to a doctor to save cost: it never pays where a review costs {review:g} and the doctor"
            f" reads with sensitivity {reader['sensitivity']:g}, specificity {reader['specificity']:g}"
        )
    decided = found["calibration_of_decided"]["decided"]
    if "p_value" in decided and decided["p_value"] < 0.05:  # none where nothing is decided
        clauses.append(
            f"you read its probability as a risk: where it decides this is off by {decided['ece']:.3f}, and would be by"
            f" {decided['noise_floor_p95']:.3f} at most in 95 of 100 draws of calibrated cases"
        )
    worse = []
    for name, one in _groups(found).items():
        gap = one.estimate("gap_decided") if "gap_decided_rests_on" in one else Estimate(absent="too few")
        if not one["defined_by_truth"] and (gap.value or 0) > 0 and (gap.p_value_holm or 1) < 0.05:
            decided_number = round((one.estimate("coverage").value or 0) * one["n"])
            worse.append(f"{name} ({one['errors_left']} wrong of {decided_number} decided)")
    return clauses + ([f"the case is one of those on which it errs more often: {few(worse)}"] if worse else [])


def _groups(found: Figures) -> dict[str, Figures]:
    groups = found["subgroups"]
    return {name: groups[name] for name in groups if isinstance(groups[name], Figures)}


def happens(ensemble: Figures | None, facts: Facts) -> Section:
    if ensemble is None:
        return not_measured("happens", "What happens", "ensemble", f"What becomes of 100 {facts.cases}")
    found = ensemble["deferral"]
    counts = {name: found["of_the_cases"][name] for name in OF_HUNDRED}
    hundred = of_hundred(counts)

    def together(*names: str) -> str:
        part = sum(hundred[name] for name in names)
        return "fewer than 1" if part == 0 and sum(counts[name] for name in names) else str(part)

    sick = sum(count for name, count in hundred.items() if name.startswith("positive"))
    missed, alarms = together("positive_called_negative"), together("negative_called_positive")
    words = [
        f"At a certainty of {found['threshold']:.3g}, of 100 {facts.cases} like these ({sick} with {facts.positive}) it"
        f" hands {together('positive_deferred', 'negative_deferred')} to a doctor. It decides the others:"
        f" {together('positive_called_positive', 'negative_called_negative')} rightly,"
        f" {missed} {'positive is' if missed == '1' else 'positives are'} missed, {alarms}"
        f" {'negative is' if alarms == '1' else 'negatives are'} called positive.",
        f"Of the decided cases {share(found.estimate('selective_risk'))} are wrong; of"
        f" {counted(found['errors_deciding_all'], 'errors')} that it makes deciding all"
        f" {counted(found['n'], 'images')} of {counted(found['n_patients'], 'patients')}, {found['errors_left']} are"
        " left.",
    ]
    return Section("happens", "What happens", "ensemble", words)


def promises(ensemble: Figures | None) -> Section:
    title, stages = "What is promised, and what is not", "ensemble, site"
    if ensemble is None:
        return not_measured("guarantee", title, stages, "Promises")
    words = guarantee.sentences(ensemble["guarantee"])
    words.append("Not promised: any single case, any other place or time, what the doctor reads.")
    return Section("guarantee", title, stages, words)


def deferral(ensemble: Figures | None) -> Section:
    """What handing cases to a doctor does, and what it is worth."""
    title = "What deferral buys"
    if ensemble is None:
        return not_measured("deferral", title, "ensemble", "What deferral buys")
    found = ensemble["deferral"]
    table = [["", "cost per case", "this policy saves"]]
    table.append(["this policy", number(found.estimate("failure_cost")), "not applicable because it is this policy"])
    for label, rival in (
        ("first member decides all", "baseline_decides_all"),
        ("the same at p > 0.5", "baseline_at_half_decides_all"),
        ("ensemble decides all", "ensemble_decides_all"),
    ):
        table.append([label, number(found[rival].estimate("cost")), share(found[rival].estimate("reduction"))])
    coverage = found.estimate("coverage")
    ends = [None if end is None else 1 - end for end in (coverage.high, coverage.low)]
    deferred = share(Estimate(found["deferral_rate"], *ends))
    rivals = ", ".join(f"{name} {found[key]:.3f}" for key, name in YARDSTICKS.items())
    used = (
        "the margin, lowered by doubts" if found["learned"]["used"] else "the margin; no doubt was shown to save cost"
    )
    words = [
        f"Handed to a doctor: {deferred}. Wrong where it decides: {share(found.estimate('selective_risk'))}.",
        f"At the same referral rate: {rivals}. A doctor who reads every case: {found['doctor_reads_all_cost']:.3f}.",
        f"Certainty: {used}.",
        f"Unlike the training images and never decided: {share(found.estimate('out_of_distribution'))} of these cases.",
    ]
    return Section("deferral", title, "ensemble", words, [table])


def subgroups(ensemble: Figures | None) -> Section:
    """For whom it decides, how often wrongly, and whether deferral widens the gap: classes first, then the riskiest."""
    title = "For whom"
    if ensemble is None:
        return not_measured("subgroups", title, "ensemble", "Subgroups")
    found = ensemble["deferral"]
    groups = _groups(found)
    table = [["", "n", "decided", "wrong where decided", "deferral and the gap"]]
    values = {name: one.estimate("selective_risk").value for name, one in groups.items()}
    risks = {name: -1 if value is None else value for name, value in values.items()}
    ordered = sorted(groups, key=lambda name: (name not in CLASSES, -risks[name]))
    for name in ordered[:MOST_SUBGROUPS]:
        one = groups[name]
        rates = (share(one.estimate(key)) for key in ("coverage", "selective_risk"))
        widening = WIDENING[one["widening"]] if "widening" in one else "too few to compare"
        table.append([CLASSES.get(name, name), str(one["n"]), *rates, widening])
    words = []
    if len(ordered) > MOST_SUBGROUPS:
        more = len(ordered) - MOST_SUBGROUPS
        words.append(f"{more} more, with fewer errors among the decided: metrics/ensemble.json.")
    if "absent" in found["subgroups"]:
        words.append(f"Other subgroups: not applicable because {found['subgroups']['absent']}.")
    return Section("subgroups", title, "ensemble", words, [table])

"""The sections of the trust card that are about the policy: verdict, when to use it and when not, promises, costs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tmv_lib.card.answers import groups_of
from tmv_lib.card.facts import Facts
from tmv_lib.card.traced import Read, Traced
from tmv_lib.card.words import NOT_MEASURED, counted, few, number, share
from tmv_lib.deferral import guarantee, verdict
from tmv_lib.pipeline.record import Figures
from tmv_lib.statistics.estimate import Estimate

MOST_MEMBERS = 3  # rows of a table: one page holds no more
MOST_SUBGROUPS = 6

OF_HUNDRED = {  # in the order in which they are drawn, with how they are told apart in grey
    "positive_called_positive": ("positive, called positive", "right"),
    "negative_called_negative": ("negative, called negative", "right"),
    "positive_called_negative": ("positive, missed", "missed"),
    "negative_called_positive": ("negative, called positive", "alarm"),
    "positive_deferred": ("positive, to a doctor", "doctor"),
    "negative_deferred": ("negative, to a doctor", "doctor"),
}
ONE = ("1", "fewer than 1")
CLASSES = {"y_true: positive": "positives", "y_true: negative": "negatives"}
WIDENING = {"widens": "widens the gap", "narrows": "narrows the gap", "not_told_apart": "not told apart"}
YARDSTICKS = {
    "random_deferral_cost": "random referral",
    "margin_deferral_cost": "the margin",
    "plain_margin_deferral_cost": "the plain margin |2p - 1|",
    "oracle_deferral_cost": "perfect foresight",
}
Table = list[list[str]]  # the first row is its head
Body = tuple[list[str], list[Table]]  # what stands in a section: its sentences and its tables


class Run(NamedTuple):
    """What the sections are made of: each stage's `Figures`, None where it has not run, and what each member is."""

    metrics: Mapping[str, Any]
    facts: Facts
    members: Mapping[str, str]

    def traced(self, read: Read) -> "Run":
        """The same, but `read` is told of every figure that is looked up."""
        traced = {stage: None if own is None else Traced.of(own, read) for stage, own in self.metrics.items()}
        return self._replace(metrics=traced)

    @property
    def rows(self) -> list[str]:
        """The members that tables have a row of."""
        return list(self.members)[:MOST_MEMBERS]


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


def when(ensemble: Figures, cases: str = "cases") -> str:
    """When to use the policy, in one sentence. cases: what they are called."""
    found = ensemble["deferral"]
    measured = f"on {counted(found['n'], 'images')} of {counted(found['n_patients'], 'patients')}"
    if ensemble["verdict"]["answer"] == verdict.USE:
        return (
            f"For {cases} like these, let it decide where its certainty is {found['threshold']:.3g} or more,"
            f" {found['coverage']:.0%} of them {measured}, and have a doctor read all others."
        )
    if ensemble["verdict"]["answer"] == verdict.DO_NOT_USE:
        return f"Not as it is: {measured} it was not worth having. Read every case as if there were no system."
    return f"Only beside a doctor who reads every case all the same: {measured} its worth was not shown."


def answer(run: Run) -> Body:
    facts, found = run.facts, run.metrics["ensemble"]
    head, *why = verdict.sentences(found["verdict"], cases=facts.cases, positive=facts.positive)
    return [head, when(found, facts.cases), *why], []


def use(run: Run) -> Body:
    use = run.facts.intended_use
    unsaid = "intended_use" in run.facts.left_open()
    clauses = [f"somebody has written what it is for (card.yaml has {use})" if unsaid else use]
    if run.metrics["ensemble"] is None:
        return _closed([*clauses, f"when it may decide: {NOT_MEASURED}"]), []
    found = run.metrics["ensemble"]["deferral"]
    cost = found["cost"]
    source = {
        "prices": "what these prices ask for",
        "budget": f"what a budget of {found.get('budget', 0):.0%} referrals leaves",
        "params": f"set by hand; these prices ask for {found['chow_threshold']:.2f}, and it is the cheapest where a"
        f" review costs {found['chow_review_price']:.2f}",
    }[found["threshold_from"]]
    certain = f"its certainty in the case is {found['threshold']:.3g} or more ({source})"
    clauses += [
        f"{certain}, and a doctor reads every other case",
        f"a missed positive costs you about {cost['false_negative']:g}, a false alarm {cost['false_positive']:g}"
        f" and a review {cost['review']:g}. On average a review of the referred is worth"
        f" {number(found.estimate('break_even_review_price'))}",
    ]
    return _closed(clauses), []


def do_not_use(run: Run) -> Body:
    """Each line with the figure that forbids it; nothing that one learns only by reading."""
    not_for = run.facts.not_for
    unsaid = "not_for" in run.facts.left_open()
    clauses = [f"nobody has written what it is not for (card.yaml has {not_for})" if unsaid else not_for]
    if ensemble := run.metrics["ensemble"]:
        clauses += _forbidden_by_promises(ensemble["guarantee"]) + _forbidden_by_policy(ensemble["deferral"])
    if explanations := run.metrics["explanations"]:
        members = explanations["explanations"].items()
        unusable = [name for name, one in members if "verdict" in one and not one["verdict"]["usable"]]
        clauses += [f"you take a map for the reason ({few(unusable)})"] if unusable else []
    if missing := [stage for stage, figures in run.metrics.items() if figures is None]:
        clauses.append(f"you would rely on what was {NOT_MEASURED}: {', '.join(missing)}")
    return _closed(clauses), []


def _forbidden_by_promises(promises: Figures) -> list[str]:
    if promises["lapses"]:
        return []
    kept = [name for name in guarantee.PROMISES if promises[name]["status"] in guarantee.KEPT]
    if not kept:
        return ["you must promise an error rate: nothing could be promised with these calibration patients"]
    return [
        f"you rely on the promise that {guarantee.SAYS[name](promises[name]['limit'])}: on test it is broken"
        for name in kept
        if "on_test" in promises[name] and promises[name]["on_test"]["verdict"] == "broken"
    ]


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
    for name, one in groups_of(found["subgroups"]).items():
        gap = one.estimate("gap_decided") if "gap_decided_rests_on" in one else Estimate(absent="too few")
        if not one["defined_by_truth"] and (gap.value or 0) > 0 and (gap.p_value_holm or 1) < 0.05:
            decided_number = round((one.estimate("coverage").value or 0) * one["n"])
            worse.append(f"{name} ({one['errors_left']} wrong of {decided_number} decided)")
    return clauses + ([f"the case is one of those on which it errs more often: {few(worse)}"] if worse else [])


def hundred_cases(run: Run) -> dict[str, int]:
    """What becomes of 100 cases; empty where that is unknown."""
    if run.metrics["ensemble"] is None:
        return {}
    counts = run.metrics["ensemble"]["deferral"]["of_the_cases"]
    return of_hundred({name: counts[name] for name in OF_HUNDRED})


def happens(run: Run) -> Body:
    found, facts, hundred = run.metrics["ensemble"]["deferral"], run.facts, hundred_cases(run)

    def together(*names: str) -> str:
        part = sum(hundred[name] for name in names)
        return ONE[1] if part == 0 and any(found["of_the_cases"][name] for name in names) else str(part)

    sick = sum(count for name, count in hundred.items() if name.startswith("positive"))
    missed, alarms = together("positive_called_negative"), together("negative_called_positive")
    words = [
        f"At a certainty of {found['threshold']:.3g}, of 100 {facts.cases} like these ({sick} with {facts.positive}) it"
        f" hands {together('positive_deferred', 'negative_deferred')} to a doctor. It decides the others:"
        f" {together('positive_called_positive', 'negative_called_negative')} rightly,"
        f" {missed} {'positive is' if missed in ONE else 'positives are'} missed, {alarms}"
        f" {'negative is' if alarms in ONE else 'negatives are'} called positive.",
        f"Of the decided cases {share(found.estimate('selective_risk'))} are wrong; of"
        f" {counted(found['errors_deciding_all'], 'errors')} that it makes deciding all"
        f" {counted(found['n'], 'images')} of {counted(found['n_patients'], 'patients')}, {found['errors_left']} are"
        " left.",
    ]
    return words, []


def promises(run: Run) -> Body:
    words = guarantee.sentences(run.metrics["ensemble"]["guarantee"])
    return [*words, "Not promised: any single case, any other place or time, what the doctor reads."], []


def deferral(run: Run) -> Body:
    """What handing cases to a doctor does, and what it is worth."""
    found = run.metrics["ensemble"]["deferral"]
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
        _unlike_training(run, found),
    ]
    return words, [table]


def _unlike_training(run: Run, found: Figures) -> str:
    uncertainty = run.metrics["uncertainty"]
    if uncertainty is not None and "absent" in uncertainty["out_of_distribution"]:
        return "A case unlike the training images is decided like any other: predictions alone do not tell it."
    return (
        f"Unlike the training images and never decided: {share(found.estimate('out_of_distribution'))} of these cases."
    )


def subgroups(run: Run) -> Body:
    """For whom it decides, how often wrongly, and whether deferral widens the gap: classes first, then the riskiest."""
    found = run.metrics["ensemble"]["deferral"]
    groups = groups_of(found["subgroups"])
    table = [["", "n", "decided", "wrong where decided", "deferral and the gap"]]
    values = {name: one.estimate("selective_risk").value for name, one in groups.items()}
    ordered = sorted(groups, key=lambda name: (name not in CLASSES, values[name] is None, -(values[name] or 0)))
    for name in ordered[:MOST_SUBGROUPS]:
        one = groups[name]
        rates = (share(one.estimate(key)) for key in ("coverage", "selective_risk"))
        widening = WIDENING[one["widening"]] if "widening" in one else "too few to compare"
        table.append([CLASSES.get(name, name), str(one["n"]), *rates, widening])
    words = []
    if (more := len(ordered) - MOST_SUBGROUPS) > 0:
        words.append(f"{more} more, with fewer errors among the decided: metrics/ensemble.json.")
    if "absent" in found["subgroups"]:
        words.append(f"Other subgroups: not applicable because {found['subgroups']['absent']}.")
    return words, [table]

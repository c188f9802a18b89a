"""The trust card: one page that tells a clinician when to use a model, and a second on what reporting guidelines ask.

`metrics` holds what stands in the metrics files of the stages that have run, under each stage's name; any may be
missing. Every figure on the card is read from it. A field says one of three things: a value, "not measured", or
"not applicable because ...". What no measurement can say is a person's: `Facts`.
"""

import csv
import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Annotated, Any, NamedTuple

from pydantic import StringConstraints

from tmv_lib.params import Params

NOT_MEASURED = "not measured"
QUESTIONS = (
    "prepare",
    "baseline",
    "diversity",
    "calibration",
    "site",
    "uncertainty",
    "explanations",
    "stability",
    "failures",
)
MOST_ROWS = 7  # of a table; one page holds no more
_TEMPLATE = Path(__file__).with_name("trust_card.html")
_CROSSWALK = Path(__file__).with_name("crosswalk.csv")

Fact = Annotated[str, StringConstraints(min_length=1, max_length=240, strip_whitespace=True)]
Noun = Annotated[str, StringConstraints(min_length=1, max_length=60, strip_whitespace=True)]


class Facts(Params):
    """What a person writes about a model, a text each; one in <angle brackets> is a placeholder.

    written_for: the source of the images that all this is about. cases: what one image each is of, in the plural.
    positive: what `y_true` = 1 means.
    """

    written_for: Noun
    name: Noun
    cases: Noun
    positive: Noun
    intended_use: Fact
    not_for: Fact
    users: Fact
    population: Fact
    reference_standard: Fact
    owner: Fact
    contact: Fact
    monitoring: Fact
    external_validation: Fact
    human_ai_test: Fact
    ethics: Fact
    funding: Fact

    def left_open(self) -> list[str]:
        """Names of the facts that are still placeholders."""
        return [name for name, text in self if re.fullmatch(r"<.*>", text)]

    def about(self, source: str) -> "Facts":
        """These facts for images of `source`: placeholders all of them where they were written for another."""
        if source == self.written_for:
            return self
        told = {name: f"<written for {self.written_for}, not for {source}>" for name, _ in self}
        return Facts(**told | {"written_for": self.written_for, "cases": "cases", "positive": "a positive"})


class Source(NamedTuple):
    """Where figures come from: a stage, its parameters by dotted name, and the digest of each file read from it."""

    stage: str
    params: Mapping[str, Any]
    files: Mapping[str, str]


class Picture(NamedTuple):
    """One image: a PNG, its caption, and the path of a sheet with more of the kind, "" where there is none."""

    png: bytes
    caption: str
    sheet: str = ""


class Section(NamedTuple):
    """A question of the card with what answers it: sentences, tables whose first row is their head, pictures."""

    key: str
    title: str
    stages: str
    words: Sequence[str] = ()
    tables: Sequence[Sequence[Sequence[str]]] = ()
    pictures: Sequence[Picture] = ()

    @property
    def answered(self) -> bool:
        """Whether anything but "not measured" stands in it."""
        cells = [cell for table in self.tables for row in table[1:] for cell in row[1:]]
        return any(NOT_MEASURED not in text for text in [*self.words, *cells])


class Item(NamedTuple):
    """What a guideline asks, in our own few words, and where it is answered; "" where it is not."""

    guideline: str
    item: str
    abridged: str
    answered: str


class Card(NamedTuple):
    """Everything on the card, in words; `hundred` counts what becomes of 100 cases, empty where that is unknown."""

    title: str
    warning: str
    hundred: Mapping[str, int]
    sections: Sequence[Section]
    items: Sequence[Item]
    sources: Sequence[Source]


def card(
    metrics: Mapping[str, Any],
    facts: Facts,
    *,
    members: Mapping[str, str],
    sources: Sequence[Source] = (),
    pictures: Sequence[Picture] = (),
) -> Card:
    """The card of a run.

    members: each member's name and what it is, in words. sources: stages in the order of the pipeline. pictures: one of
    each kind of failure.
    """
    of_policy = metrics.get("deferral", {})
    hundred = of_hundred(of_policy["of_the_cases"]) if "of_the_cases" in of_policy else {}
    sections = [
        Section("use", "Use it", "ensemble, a person", use(metrics, facts)),
        Section("do_not_use", "Do not use it", "all", do_not_use(metrics, facts)),
        Section("happens", "What happens", "ensemble", happens(of_policy, hundred, facts)),
        guarantee(metrics),
        reading(metrics),
        calibration(metrics, members),
        uncertainty(metrics, members),
        explanations(metrics, members),
        failures(metrics, pictures),
        deferral(of_policy),
        subgroups(of_policy),
        Section("site", "Another place", "site, a person", place(metrics, facts)),
        Section(
            "members", "Members", "train", [f"{name}: {what}." for name, what in members.items()] or [NOT_MEASURED]
        ),
        data(metrics),
        people(facts),
    ]
    return Card(
        title=facts.name,
        warning=warning(facts),
        hundred=hundred,
        sections=sections,
        items=crosswalk(sections, facts, sources),
        sources=sources,
    )


def figure(found: Mapping[str, Any], name: str, *, percent: bool = True) -> str:
    """A figure with its 95 % interval, "not applicable because ..." with its reason, or "not measured".

    >>> figure({"risk": 0.173, "risk_low": 0.132, "risk_high": 0.221}, "risk")
    '17.3 % (13.2 to 22.1)'
    >>> figure({"risk_absent": "there is no such case"}, "risk"), figure({}, "risk")
    ('not applicable because there is no such case', 'not measured')
    """
    if f"{name}_absent" in found:
        return f"not applicable because {found[f'{name}_absent']}"
    if name not in found:
        return NOT_MEASURED
    number: Callable[[float], str] = (lambda x: f"{100 * x:.1f}") if percent else (lambda x: f"{x:.3f}")
    value = number(found[name]) + " %" * percent
    if f"{name}_low" not in found:
        return value
    return f"{value} ({number(found[f'{name}_low'])} to {number(found[f'{name}_high'])})"


def of_hundred(counts: Mapping[str, int]) -> dict[str, int]:
    """These counts as whole numbers of 100 that sum to 100, by largest remainders; all 0 where there is none.

    >>> of_hundred({"right": 2, "wrong": 1, "deferred": 0})
    {'right': 67, 'wrong': 33, 'deferred': 0}
    """
    total = sum(counts.values())
    if total == 0:
        return dict.fromkeys(counts, 0)
    exact = {name: 100 * count / total for name, count in counts.items()}
    found = {name: int(share) for name, share in exact.items()}
    most = sorted(exact, key=lambda name: found[name] - exact[name])
    for name in most[: 100 - sum(found.values())]:
        found[name] += 1
    return found


def digest(path: str | Path) -> str:
    """The MD5 of a file, under which DVC knows it: `dvc.lock` says what the stage that made it read in its turn."""
    return hashlib.md5(Path(path).read_bytes()).hexdigest()


def at(found: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The nested figures under these keys; nothing where a key is missing."""
    for key in keys:
        found = found.get(key, {})
    return found


def fact(facts: Facts, name: str) -> str:
    """A fact, or "not measured" with the place where it is to be written."""
    if name in facts.left_open():
        return f"{NOT_MEASURED}: card.yaml does not say"
    return str(getattr(facts, name))


def warning(facts: Facts) -> str:
    """Which facts nobody has written, in words; "" where all are."""
    left = facts.left_open()
    return f"Nobody has written in card.yaml: {', '.join(left)}. Do not use this card before." if left else ""


def use(metrics: Mapping[str, Any], facts: Facts) -> list[str]:
    """What to do, verbs first."""
    found = metrics.get("deferral", {})
    if "threshold" not in found:
        return [f"Use it for: {fact(facts, 'intended_use')}", f"When to let it decide: {NOT_MEASURED}"]
    cost = found["cost"]
    told = [
        f"Use it for: {fact(facts, 'intended_use')}.",
        f"Let it decide a case whose certainty is at least {found['threshold']:.3g}, and hand every other to a doctor.",
        f"Set your own prices first. Here a missed positive costs {cost['false_negative']:g}, a false alarm"
        f" {cost['false_positive']:g}, a review {cost['review']:g}; cheapest on validation is a certainty of"
        f" {found['cost_optimal']['threshold']:.3g}, and a review pays up to {_price(found)}.",
    ]
    ltt = at(metrics, "guarantee", "ltt")
    if ltt.get("certified"):
        told.append(f"Demand a certainty of {ltt['threshold']:.3g} where you need the guarantee below.")
    return told


def _price(found: Mapping[str, Any]) -> str:
    told = figure(found, "break_even_review_price", percent=False)
    return told if "not" in told else f"{found['break_even_review_price']:.3g}"


def do_not_use(metrics: Mapping[str, Any], facts: Facts) -> list[str]:
    """What not to do, each line with the figure that forbids it."""
    found, told = metrics.get("deferral", {}), [f"Do not use it: {fact(facts, 'not_for')}."]
    shift = at(metrics, "site", "shift")
    if shift.get("name", "none") != "none":
        told.append(f"Do not trust figures from elsewhere at the test's place. {shift['words']}")
    if "never pays" in found.get("words", ""):
        told.append(f"Do not hand cases to a doctor to save cost: {found['words']}.")
    elif found.get("doctor_reads_all_cost", 1e9) < found.get("failure_cost", 0):
        told.append(
            f"Do not use it to save cost at these prices: a doctor who reads everything costs"
            f" {found['doctor_reads_all_cost']:.3g} a case, this policy {figure(found, 'failure_cost', percent=False)}."
        )
    certificates = [at(metrics, "guarantee", side, "ltt") for side in ("pooled", "positive", "negative")]
    if any(certificates) and not any(one.get("certified") for one in certificates):
        told.append("Do not promise an error rate: nothing can be certified with these calibration cases.")
    decided = at(found, "calibration_of_decided", "decided")
    if decided.get("p_value", 1) < 0.05:
        told.append(
            f"Do not read its probability as a risk: it is off by {decided['ece']:.3f} where it decides, chance alone"
            f" gives {decided['noise_floor_p95']:.3f} at most in 95 of 100 draws."
        )
    unusable = [name for name, one in metrics.get("explanations", {}).items() if "Do not" in one.get("verdict", "")]
    if unusable:
        told.append(f"Do not take its maps for a reason ({', '.join(unusable)}).")
    risk = found.get("selective_risk", 1)
    worse = [
        f"{name} ({one['errors_left']} wrong of {round(one['coverage'] * one['n'])} decided)"
        for name, one in found.get("subgroups", {}).items()
        if isinstance(one, Mapping) and one.get("selective_risk_low", 0) > risk
    ]
    if worse:
        told.append(f"Do not leave to it: {_few(worse)}. It errs more often there than elsewhere.")
    if unmeasured := [name for name in QUESTIONS if name not in metrics]:
        told.append(f"Do not assume what was {NOT_MEASURED}: {', '.join(unmeasured)}.")
    return told


def happens(found: Mapping[str, Any], hundred: Mapping[str, int], facts: Facts) -> list[str]:
    """What becomes of 100 cases, in whole numbers."""
    if not hundred:
        return [f"What becomes of 100 {facts.cases}: {NOT_MEASURED}"]
    counts = found["of_the_cases"]

    def number(*names: str) -> str:
        share = sum(hundred[name] for name in names)
        return "fewer than 1" if share == 0 and sum(counts[name] for name in names) else str(share)

    deferred = number("positive_deferred", "negative_deferred")
    right = number("positive_called_positive", "negative_called_negative")
    sick = sum(count for name, count in hundred.items() if name.startswith("positive"))
    threshold = f"At a certainty of {found['threshold']:.3g}, of 100 {facts.cases} like these ({sick} with"
    return [
        f"{threshold} {facts.positive}) it hands {deferred} to a doctor. It decides the others: {right} rightly,"
        f" {number('positive_called_negative')} positives are missed, {number('negative_called_positive')} negatives"
        " are called positive.",
        f"Of the decided {figure(found, 'selective_risk')} are wrong; {found['errors_left']} errors are left of"
        f" {found['errors_deciding_all']} that it makes deciding all {found['n']} images of {found['n_patients']}"
        " patients.",
    ]


def guarantee(metrics: Mapping[str, Any]) -> Section:
    """What is guaranteed, for whom, what is not, and whether the guarantee was found to hold."""
    found = metrics.get("guarantee", {})
    title, stages = "What is guaranteed, and what is not", "ensemble, site"
    if "pooled" not in found:
        return Section("guarantee", title, stages, [f"Guarantee: {NOT_MEASURED}"])
    words = []
    for side in ("pooled", "positive", "negative"):
        ltt, level = at(found, side, "ltt"), found[side]["delta"]
        if ltt.get("certified"):
            which = "decisions" if side == "pooled" else f"{side} decisions"
            words.append(
                f"Guaranteed with {100 * (1 - level):g} % confidence: at most {found['risk']:.0%} of the {which} with a"
                f" certainty of {ltt['threshold']:.3g} or more are wrong, for {found['population']}. On test these are"
                f" {figure(ltt, 'test_coverage')}, of which {figure(ltt, 'test_selective_risk')} were wrong."
            )
    if not words:
        words.append(f"Guaranteed: nothing. {at(found, 'pooled', 'ltt').get('words', found['pooled'].get('words'))}")
    words.append(f"Not guaranteed: any single case, any other place or time, what the doctor reads. {found['words']}")
    audit = at(found, "audit")
    for place in (name for name in ("cal", "test") if name in audit):
        told = figure(audit[place]["ltt"], "violation_rate")
        words.append(
            f"Audit: of {audit['draws']} calibration sets drawn again, {told} gave a guarantee broken on {place}"
            + (f"; {100 * found['delta']:g} % may." if place == "cal" else ".")
        )
    local = at(metrics, "site", "certificate")
    words.append(f"By this place's own labels, decided under a guarantee: {figure(local, 'coverage')}.")
    return Section("guarantee", title, stages, words)


def reading(metrics: Mapping[str, Any]) -> Section:
    """Sensitivity, specificity and AUROC, and predictive values at several prevalences."""
    found, ensemble = metrics.get("deferral", {}), metrics.get("ensemble", {})
    rates = [["", "where it decides", "deciding all"]]
    for name in ("sensitivity", "specificity"):
        rates.append([name, figure(found, f"decided_{name}"), figure(found, f"deciding_all_{name}")])
    values = [["positive among all that come", "positive calls right", "negative calls right"]]
    if "n" in found:
        here = {name: figure(found, f"decided_{name}") for name in ("precision", "negative_predictive_value")}
        values.append([f"{100 * found['n_positive'] / found['n']:.0f} % (test)", *here.values()])
    for prevalence, one in found.get("at_prevalence", {}).items():
        row = [figure(one, "precision"), figure(one, "negative_predictive_value")]
        values.append([f"{100 * float(prevalence):g} %", *row])
    if len(values) == 1:
        values.append(["any", NOT_MEASURED, NOT_MEASURED])
    combined = at(ensemble, str(ensemble.get("combine", "")))
    words = [f"AUROC of the ensemble: {figure(combined, 'auroc', percent=False)}."]
    return Section("reading", "How well it reads", "ensemble", words, [rates, values])


def calibration(metrics: Mapping[str, Any], members: Mapping[str, str]) -> Section:
    """Calibration errors of each member before and after, and of the ensemble where it decides, beside their floors."""
    found, head = metrics.get("calibration", {}), ["", "ECE before", "after", "floor", "in the large, after"]
    table = [head]
    for name in list(members)[:MOST_ROWS] or ["members"]:
        before, after = at(found, name, "before"), at(found, name, "after")
        errors = [figure(at(one, "positive_class_ece_uniform"), "ece", percent=False) for one in (before, after)]
        floor = figure(at(after, "positive_class_ece_uniform"), "noise_floor_p95", percent=False)
        table.append([name, *errors, floor, _signed(after, "in_the_large")])
    decided = at(metrics, "deferral", "calibration_of_decided", "decided")
    ends = [figure(decided, name, percent=False) for name in ("ece", "noise_floor_p95")]
    table.append(["policy, decided", "not applicable because calibrated members are combined", *ends])
    table[-1].append(_signed(decided, "in_the_large"))
    chosen = {name: at(found, name, "calibrator").get("name") for name in members}
    told = [f"Chosen calibrators: {', '.join(f'{of} {name}' for of, name in chosen.items() if name) or NOT_MEASURED}."]
    told.append("The floor: what 95 of 100 draws of perfectly calibrated cases stay below. In the large: 0 is right.")
    return Section("calibration", "Calibration, before and after", "calibration, ensemble", told, [table])


def _signed(found: Mapping[str, Any], name: str) -> str:
    if name not in found or f"{name}_low" not in found:
        return figure(found, name, percent=False)
    value, low, high = (found[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def uncertainty(metrics: Mapping[str, Any], members: Mapping[str, str]) -> Section:
    """Whether doubt finds errors, whether anything beats the plain margin, and whether strange images are noticed."""
    found, strange = metrics.get("uncertainty", {}), metrics.get("unlike_training", {})
    table = [["", "margin finds errors (AUROC)", "signals better than it"]]
    words = []
    for name in list(members)[:MOST_ROWS] or ["members"]:
        own = at(found, name)
        better = [
            signal.replace("_", " ")
            for signal, one in own.items()
            if isinstance(one, Mapping)
            and one.get("gain_over_margin", 0) > 0
            and one.get("gain_over_margin_p_value_holm", 1) < 0.05
        ]
        said = (", ".join(better) or "no") if own else NOT_MEASURED
        table.append([name, figure(at(own, "margin"), "error_auroc", percent=False), said])
        words.append(f"{name}: {at(own, 'quadrants').get('words', f'Confident mistakes: {NOT_MEASURED}.')}")
        words.append(f"Images unlike training, {name}: {at(strange, name).get('words_distance', NOT_MEASURED)}.")
    return Section("uncertainty", "Does doubt find errors?", "uncertainty", words, [table])


def explanations(metrics: Mapping[str, Any], members: Mapping[str, str]) -> Section:
    """What the maps are good for."""
    maps, moved = metrics.get("explanations", {}), metrics.get("stability", {})
    words = ["A map shows where the network looked, not where disease is."]
    for name in list(members)[:MOST_ROWS] or ["members"]:
        words.append(f"{name}: {at(maps, name).get('verdict', f'maps {NOT_MEASURED}.')}")
        words.append(f"Hiding the border flips {figure(at(maps, name), 'border_flip_rate')} of its answers.")
        claim = at(moved, name, "errors").get("claim", f"stability of maps {NOT_MEASURED}.")
        words.append(str(claim).partition(" They tell")[0])
    return Section("explanations", "Limits of the explanations", "explanations, stability", words)


def failures(metrics: Mapping[str, Any], pictures: Sequence[Picture]) -> Section:
    """The kinds of the ensemble's errors, how many of each deferral catches, and an image of each."""
    found = at(metrics, "failures", "ensemble")
    caught = at(metrics, "deferral", "failures")
    table = [["kind", "of its errors", "deferral catches"]]
    for name, one in found.items():
        if isinstance(one, Mapping) and one.get("n") and "share" in one and name != "right_for_the_wrong_reason":
            table.append([f"{name} ({one['n']})", figure(one, "share"), figure(at(caught, name), "caught")])
    if len(table) == 1:
        none = "not applicable because there is no error" if found.get("n_errors") == 0 else NOT_MEASURED
        table.append(["any", none, none])
    stages = "failures, ensemble"
    return Section("failures", "Kinds of failure", stages, (), [table], pictures if found else ())


def deferral(found: Mapping[str, Any]) -> Section:
    """What handing cases to a doctor does, and what it is worth."""
    table = [["", "on test"]]
    table.append(["handed to a doctor", figure(_share_deferred(found), "deferral_rate")])
    table.append(["wrong where it decides", figure(found, "selective_risk")])
    table.append(["cost of a case", figure(found, "failure_cost", percent=False)])
    for label, rival in (
        ("saved against the first member", "baseline_decides_all"),
        ("the same at p > 0.5", "baseline_at_half_decides_all"),
        ("saved against no deferral", "ensemble_decides_all"),
    ):
        table.append([label, figure(at(found, rival), "reduction")])
    for label, name in (
        ("cost, referrals by lot", "random_deferral_cost"),
        ("cost, errors deferred first", "oracle_deferral_cost"),
        ("cost, a doctor reads all", "doctor_reads_all_cost"),
    ):
        table.append([label, figure(found, name, percent=False)])
    verdict = at(found, "learned").get("verdict", NOT_MEASURED)
    missing = ", ".join(f"{name} {count}" for name, count in at(found, "signals_missing").items()) or "none"
    words = [f"Learned certainty: {verdict}.", f"Values missing in its signals: {missing if found else NOT_MEASURED}."]
    return Section("deferral", "What deferral buys", "ensemble", words, [table])


def _share_deferred(found: Mapping[str, Any]) -> dict[str, float]:
    """The deferral rate with the interval of the coverage, turned round."""
    if "coverage_low" not in found:
        return {name: found[name] for name in ("deferral_rate",) if name in found}
    ends = {"deferral_rate_low": 1 - found["coverage_high"], "deferral_rate_high": 1 - found["coverage_low"]}
    return {"deferral_rate": found["deferral_rate"]} | ends


def subgroups(found: Mapping[str, Any]) -> Section:
    """For whom it decides, how often wrongly, and whether deferral widens the gap: classes first, then the riskiest."""
    groups = {name: one for name, one in at(found, "subgroups").items() if isinstance(one, Mapping)}
    names = {"y_true: positive": "positives", "y_true: negative": "negatives"}
    table = [["", "n", "decided", "wrong where decided", "gap to the rest"]]
    ordered = sorted(groups, key=lambda name: (name not in names, -groups[name].get("selective_risk", -1)))
    for name in ordered[:MOST_ROWS]:
        one = groups[name]
        row = [names.get(name, name), str(one["n"]), figure(one, "coverage"), figure(one, "selective_risk")]
        table.append([*row, one.get("words", f"not applicable because {one.get('widened_absent', 'of too few')}")])
    words = []
    if len(ordered) > MOST_ROWS:
        words.append(f"{len(ordered) - MOST_ROWS} more, with fewer errors among the decided: metrics/ensemble.json.")
    if absent := at(found, "subgroups").get("absent"):
        words.append(f"Other subgroups: not measurable, not applicable because {absent}.")
    if not groups:
        words.append(f"Subgroups: {NOT_MEASURED}.")
    return Section("subgroups", "For whom", "ensemble", words, [table] if groups else [])


def place(metrics: Mapping[str, Any], facts: Facts) -> list[str]:
    """Whether the model was tried elsewhere, and beside doctors."""
    shift = at(metrics, "site", "shift")
    return [
        f"External validation: {fact(facts, 'external_validation')}.",
        f"Test with doctors who use it: {fact(facts, 'human_ai_test')}.",
        f"Is test like the place of training? {shift.get('words', NOT_MEASURED)}",
    ]


def data(metrics: Mapping[str, Any]) -> Section:
    """The splits and what the audit of the data found."""
    found = metrics.get("prepare", {})
    splits = [
        f"{name} {one['images']} images of {one['patients']} patients ({one['positives']} positive)"
        for name, one in at(found, "splits").items()
    ]
    problems = {name: max(one.values()) for name, one in at(found, "problems").items()}
    seen = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in problems.items() if count)
    clear = ", ".join(name.replace("_", " ") for name, count in problems.items() if not count)
    audit = (
        f"found: {seen or 'no problem'}; looked for and not found: {clear or 'nothing'}" if problems else NOT_MEASURED
    )
    words = [f"Splits by patient: {'; '.join(splits) or NOT_MEASURED}.", f"Audit, {audit}."]
    return Section("data", "Data", "prepare", words)


def people(facts: Facts) -> Section:
    """What a person answers for."""
    names = ("users", "population", "reference_standard", "owner", "contact", "monitoring", "ethics", "funding")
    words = [f"{name.replace('_', ' ').capitalize()}: {fact(facts, name)}." for name in names]
    return Section("people", "Who answers for it", "a person, card.yaml", words)


def crosswalk(sections: Iterable[Section], facts: Facts, sources: Sequence[Source]) -> list[Item]:
    """The items of the reporting guidelines, each with what answers it: parts of the card, or files of the project."""
    titles = {section.key: section.title for section in sections if section.answered}
    titles |= {"sources": "Where the numbers come from"} if sources else {}
    empty = (NOT_MEASURED, "not done", "none", "nobody")
    titles |= {name: name.replace("_", " ") for name, _ in facts if not fact(facts, name).startswith(empty)}
    with _CROSSWALK.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    items = []
    for row in rows:
        wanted, told = row["answered_by"], ""
        if wanted.startswith("repository:"):
            told = wanted.removeprefix("repository:")
        elif wanted and all(key in titles for key in wanted.split()):
            told = ", ".join(titles[key] for key in wanted.split())
        items.append(Item(row["guideline"], row["item"], row["abridged"], told))
    return items


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


OF_HUNDRED = {  # in the order in which they are drawn, with how they are told apart in grey
    "positive_called_positive": ("positive, called so", "right"),
    "negative_called_negative": ("negative, called so", "right"),
    "positive_called_negative": ("positive, missed", "missed"),
    "negative_called_positive": ("negative, called positive", "alarm"),
    "positive_deferred": ("positive, to a doctor", "doctor"),
    "negative_deferred": ("negative, to a doctor", "doctor"),
}
NOTE = (
    "A research tool, not a medical device. Figures are of the test split, brackets hold 95 % intervals over patients."
    f' Every field says a value, "{NOT_MEASURED}" or "not applicable because".'
)
CROSSWALK_NOTE = (
    "Wording is abridged and ours; read the guidelines themselves: TRIPOD+AI (Collins et al. 2024), CLAIM 2024 (Tejani"
    " et al. 2024), Model Facts (Sendak et al. 2020; its label has no numbers, these are ours). They ask about a study,"
    " and this card answers for a model: what belongs into a paper is missing."
)


def as_html(told: Card) -> str:
    """The card as one HTML file that needs no network: it prints on A4 and Letter, a page and the crosswalk."""
    by_key = {section.key: section for section in told.sections}
    lead = ("use", "do_not_use", "happens", "guarantee")
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(told.title),
        warning=f'<p class="warning">{escape(told.warning)}</p>' if told.warning else "",
        note=escape(NOTE),
        **{key: _section_html(by_key[key]) for key in lead},
        hundred=_hundred_html(told.hundred),
        sections="".join(_section_html(section) for section in told.sections if section.key not in lead),
        crosswalk_note=escape(CROSSWALK_NOTE),
        crosswalk="".join(_guideline_html(name, items) for name, items in _by_guideline(told.items)),
        sources=_table_html(sources_table(told.sources)),
    )


def _section_html(section: Section) -> str:
    words = "".join(f"<li>{escape(text)}</li>" for text in section.words)
    pictures = "".join(
        f'<figure><img alt="{escape(one.caption)}" src="data:image/png;base64,{b64encode(one.png).decode()}">'
        f"<figcaption>{escape(one.caption)}</figcaption></figure>"
        for one in section.pictures
    )
    return (
        f'<section class="{section.key}"><h2>{escape(section.title)} <small>{escape(section.stages)}</small></h2>'
        + "".join(map(_table_html, section.tables))
        + (f'<div class="pictures">{pictures}</div>' if pictures else "")
        + (f"<ul>{words}</ul>" if words else "")
        + "</section>\n"
    )


def _table_html(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in body
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"


def _hundred_html(hundred: Mapping[str, int]) -> str:
    """A hundred squares, 20 a row, told apart by pattern and not by colour, and their legend."""
    if not hundred:
        return f"<p>{NOT_MEASURED}</p>"
    looks = [OF_HUNDRED[name][1] for name in OF_HUNDRED for _ in range(hundred[name])]
    squares = "".join(
        f'<rect class="{look}" x="{10 * (k % 20) + 0.8}" y="{10 * (k // 20) + 0.8}" width="8.4" height="8.4"/>'
        for k, look in enumerate(looks)
    )
    legend = "".join(
        f'<li><svg viewBox="0 0 10 10" aria-hidden="true"><rect class="{look}" x="0.8" y="0.8" width="8.4"'
        f' height="8.4"/></svg> {hundred[name]} {escape(label)}</li>'
        for name, (label, look) in OF_HUNDRED.items()
    )
    words = ", ".join(f"{hundred[name]} {label}" for name, (label, _) in OF_HUNDRED.items())
    return (
        f'<svg class="hundred" viewBox="0 0 200 50" role="img" aria-label="Of 100 cases: {escape(words)}">'
        f'{squares}</svg><ul class="legend">{legend}</ul>'
    )


def _by_guideline(items: Iterable[Item]) -> list[tuple[str, list[Item]]]:
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.guideline, []).append(item)
    return list(groups.items())


def _guideline_html(name: str, items: Sequence[Item]) -> str:
    answered = sum(bool(item.answered) for item in items)
    rows = "".join(
        f'<li class="{"filled" if item.answered else "missing"}"><b>{escape(item.item)}</b> {escape(item.abridged)}:'
        f" <i>{escape(item.answered or 'missing')}</i></li>"
        for item in items
    )
    return f"<section><h2>{escape(name)} <small>{answered} of {len(items)} filled</small></h2><ul>{rows}</ul></section>"


def sources_table(sources: Sequence[Source]) -> list[list[str]]:
    """Stage, parameters, and digest of each file read from it."""
    table = [["stage", "files read, with their MD5 (dvc.lock says under it what that stage read)", "params.yaml"]]
    for source in sources:
        files = ", ".join(f"{path} {md5[:10]}" for path, md5 in source.files.items())
        params = ", ".join(f"{name} {_plain(value)}" for name, value in source.params.items())
        table.append([source.stage, files or "not applicable because none is read", params or NOT_MEASURED])
    return table if sources else [*table, ["any", NOT_MEASURED, NOT_MEASURED]]


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def as_markdown(told: Card) -> str:
    """The card as Markdown: the same words and figures, pictures by a link to the sheets they come from."""
    parts = [f"# Trust card: {told.title}", NOTE]
    parts += [f"> **{told.warning}**"] if told.warning else []
    for section in told.sections:
        parts.append(f"## {section.title}\n\n*from: {section.stages}*")
        if section.key == "happens" and told.hundred:
            rows = [[label, str(told.hundred[name])] for name, (label, _) in OF_HUNDRED.items()]
            parts.append(_table_markdown([["of 100", ""], *rows]))
        parts += [_table_markdown(table) for table in section.tables]
        parts += [f"![{one.caption}]({one.sheet})\n{one.caption}" for one in section.pictures if one.sheet]
        parts += ["\n".join(f"- {text}" for text in section.words)] if section.words else []
    parts.append(f"## Crosswalk\n\n{CROSSWALK_NOTE}")
    for name, items in _by_guideline(told.items):
        rows = [[item.item, item.abridged, item.answered or "missing"] for item in items]
        parts.append(f"### {name}\n\n" + _table_markdown([["item", "asks for", "answered by"], *rows]))
    parts.append("## Where the numbers come from\n\n" + _table_markdown(sources_table(told.sources)))
    return "\n\n".join(parts) + "\n"


def _table_markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

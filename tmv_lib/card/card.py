"""The trust card: one page that tells a clinician when to use a model, and a second on what reporting guidelines ask.

`metrics` holds what stands in the metrics files of the stages that have run, under each stage's name; any may be
missing. Every figure on the card is read from it. A field says one of three things: a value, "not measured", or
"not applicable because ...". What no measurement can say is a person's: `Facts`.
"""

import csv
import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from tmv_lib.card.facts import NOT_MEASURED, Facts, fact, warning
from tmv_lib.deferral import guarantee as guarantees
from tmv_lib.deferral import verdict
from tmv_lib.explanations import map_verdict
from tmv_lib.pipeline.files import whole
from tmv_lib.pipeline.params import Member

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
OF_HUNDRED = {  # in the order in which they are drawn, with how they are told apart in grey
    "positive_called_positive": ("positive, called so", "right"),
    "negative_called_negative": ("negative, called so", "right"),
    "positive_called_negative": ("positive, missed", "missed"),
    "negative_called_positive": ("negative, called positive", "alarm"),
    "positive_deferred": ("positive, to a doctor", "doctor"),
    "negative_deferred": ("negative, to a doctor", "doctor"),
}
MOST_MEMBERS = 3  # rows of a table: one page holds no more
MOST_SUBGROUPS = 6
_TEMPLATE = Path(__file__).with_name("trust_card.html")
_CROSSWALK = Path(__file__).with_name("crosswalk.csv")


class Source(NamedTuple):
    """Where figures come from: a stage, its parameters, nested or not, and the digest of each file read from it."""

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
        return any(NOT_MEASURED not in text for text in (cells or self.words))


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
    counts = at(of_policy, "of_the_cases")
    hundred = of_hundred(counts) if OF_HUNDRED.keys() <= counts.keys() else {}
    sections = [
        Section("verdict", "Verdict", "ensemble", judged(metrics, facts)),
        Section("use", "Use it when", "ensemble, a person", use(metrics, facts)),
        Section("do_not_use", "Do not use it when", "all stages, a person", do_not_use(metrics, facts)),
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
        Section("members", "Members", "train", described(members)),
        data(metrics),
        people(facts),
    ]
    return Card(
        title=fact(facts, "name"),
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
    if not {f"{name}_low", f"{name}_high"} <= found.keys():
        return value
    return f"{value} ({number(found[f'{name}_low'])} to {number(found[f'{name}_high'])})"


def plain(found: Mapping[str, Any], name: str, form: str = ".3g") -> str:
    """A number or a sentence as it stands, or "not measured"."""
    return format(found[name], "" if isinstance(found[name], str) else form) if name in found else NOT_MEASURED


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


def read_stages(
    files: Mapping[str, Sequence[str]], params: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], list[Source]]:
    """The metrics of the stages that have run, and where they come from.

    files: what is read of each stage, in the order of the pipeline; its metrics are in `<stage>.json`. A stage of whose
    files none is there has not run. params: what each stage was told.
    """
    metrics: dict[str, Any] = {}
    sources = []
    for stage, paths in files.items():
        found = [path for path in paths if Path(path).exists()]
        if paths and not found:
            continue
        for path in (path for path in found if Path(path).name == f"{stage}.json"):
            metrics |= json.loads(Path(path).read_text(encoding="utf-8"))
        sources.append(Source(stage, params.get(stage, {}), {path: digest(path) for path in found}))
    return metrics, sources


def in_words(member: Member | None) -> str:
    """What a member is; None where there is no network to ask."""
    if member is None:
        return "known by its predictions alone"
    origin = f"{'trained here' if member.train else 'taken as it is'} from weights {member.weights}"
    return f"{member.architecture}, {origin}, dropout {member.dropout:g}, seed {member.seed}"


def examples(errors: pd.DataFrame, images: np.ndarray, cases: pd.DataFrame, *, sheets: str) -> list[Picture]:
    """A picture of each error, with what the policy does with it.

    errors: `image_id`, `kind`, `y_true`; images: (n, height, width) uint8, in the same order. cases: the policy's
    `image_id`, `y_prob` and `deferred`. sheets: the folder of each kind's sheet, as seen from the card.
    """
    policies = cases.set_index("image_id").loc[errors["image_id"]]
    pictures = []
    for error, image, case in zip(errors.itertuples(), images, policies.itertuples(), strict=True):
        truth, done = ("negative", "positive")[error.y_true], "to a doctor" if case.deferred else "decided"
        caption = f"{error.kind}: {truth}, p {case.y_prob:.2f}, {done}"
        pictures.append(Picture(png(image), caption, f"{sheets}/{str(error.kind).replace(' ', '_')}.png"))
    return pictures


def digest(path: str | Path) -> str:
    """The MD5 of a file, under which DVC knows it: `dvc.lock` says what the stage that made it read in its turn."""
    return hashlib.md5(Path(path).read_bytes()).hexdigest()


def png(image: np.ndarray) -> bytes:
    """A grey image (h, w) as PNG, at most 128 pixels a side."""
    small = Image.fromarray(image)
    small.thumbnail((128, 128))
    file = BytesIO()
    small.save(file, "png")
    return file.getvalue()


def at(found: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The nested figures under these keys; nothing where a key is missing."""
    for key in keys:
        found = found.get(key, {})
    return found


def judged(metrics: Mapping[str, Any], facts: Facts) -> list[str]:
    """Use it, do not use it, or cannot tell: the verdict and what it rests on."""
    if "verdict" not in metrics:
        return [f"Verdict: {NOT_MEASURED}"]
    return verdict.sentences(metrics["verdict"], cases=facts.cases, positive=facts.positive)


def use(metrics: Mapping[str, Any], facts: Facts) -> list[str]:
    """Use it when ..."""
    found, told = metrics.get("deferral", {}), [f"{fact(facts, 'intended_use')};"]
    if "threshold" not in found:
        return _sentence([*told, f"when it may decide: {NOT_MEASURED}"])
    missed, alarm, review = (plain(at(found, "cost"), name, "g") for name in COSTS)
    price = figure(found, "break_even_review_price", percent=False)
    source = {
        "prices": "what these prices ask for",
        "budget": f"what a budget of {plain(found, 'budget', '.0%')} referrals leaves",
        "params": f"set by hand; these prices ask for {plain(found, 'chow_threshold', '.2f')}, and it is the cheapest"
        f" where a review costs {plain(found, 'chow_review_price', '.2f')}",
    }.get(str(found.get("threshold_from")), NOT_MEASURED)
    told += [
        f"its certainty in the case is {plain(found, 'threshold')} or more ({source}), and a doctor reads every other"
        " case;",
        f"a missed positive costs you about {missed}, a false alarm {alarm} and a review {review}. On average a review"
        f" of the referred is worth {price}.",
    ]
    return _sentence(told)


COSTS = ("false_negative", "false_positive", "review")


def do_not_use(metrics: Mapping[str, Any], facts: Facts) -> list[str]:
    """Do not use it when ..., each line with the figure that forbids it; nothing that one learns only by reading."""
    found, told = metrics.get("deferral", {}), [f"{fact(facts, 'not_for')};"]
    promised = {name: one for name, one in metrics.get("guarantee", {}).items() if name in guarantees.PROMISES}
    kept = {name: one for name, one in promised.items() if one["status"].startswith("kept")}
    for name, one in kept.items():
        if at(one, "on_test").get("verdict") == "broken":
            told.append(f"you rely on the promise that {guarantees.SAYS[name](one['limit'])}: on test it is broken;")
    if found.get("deferral_can_pay") is False:
        told.append(f"you hand cases to a doctor to save cost: {found['words']};")
    if promised and not kept:
        told.append("you must promise an error rate: nothing could be promised with these calibration patients;")
    decided = at(found, "calibration_of_decided", "decided")
    if decided.get("p_value", 1) < 0.05:
        told.append(
            f"you read its probability as a risk: where it decides this is off by {plain(decided, 'ece', '.3f')}, and"
            f" would be by {plain(decided, 'noise_floor_p95', '.3f')} at most in 95 of 100 draws of calibrated cases;"
        )
    unusable = [
        name
        for name, one in metrics.get("explanations", {}).items()
        if "verdict" in one and not one["verdict"]["usable"]
    ]
    if unusable:
        told.append(f"you take a map for the reason ({_few(unusable)});")
    worse = [
        f"{name} ({plain(one, 'errors_left', 'd')} wrong of {round(one.get('coverage', 0) * one.get('n', 0))} decided)"
        for name, one in at(found, "subgroups").items()
        if isinstance(one, Mapping)
        and not one.get("defined_by_truth", name in CLASSES)
        and one.get("gap_decided", 0) > 0
        and one.get("gap_decided_p_value_holm", 1) < 0.05
    ]
    if worse:
        told.append(f"the case is one of those on which it errs more often: {_few(worse)};")
    if unmeasured := [name for name in QUESTIONS if name not in metrics]:
        told.append(f"you would rely on what was {NOT_MEASURED}: {', '.join(unmeasured)};")
    return _sentence(told)


def _sentence(clauses: list[str]) -> list[str]:
    return [*clauses[:-1], clauses[-1].rstrip(";.") + "."]


CLASSES = {"y_true: positive": "positives", "y_true: negative": "negatives"}


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
    left, total, n, patients = (
        plain(found, name, "d") for name in ("errors_left", "errors_deciding_all", "n", "n_patients")
    )
    return [
        f"At a certainty of {plain(found, 'threshold')}, of 100 {facts.cases} like these ({sick} with {facts.positive})"
        f" it hands {deferred} to a doctor. It decides the others: {right} rightly,"
        f" {number('positive_called_negative')} positives are missed, {number('negative_called_positive')} negatives"
        " are called positive.",
        f"Of the decided {figure(found, 'selective_risk')} are wrong; {left} errors are left of {total} that it makes"
        f" deciding all {n} images of {patients} patients.",
    ]


def guarantee(metrics: Mapping[str, Any]) -> Section:
    """What is promised, for whom, what is not, and whether it holds on test."""
    title, stages = "What is promised, and what is not", "ensemble, site"
    if "guarantee" not in metrics:
        return Section("guarantee", title, stages, [f"Promises: {NOT_MEASURED}"])
    words = guarantees.sentences(metrics["guarantee"])
    words.append("Not promised: any single case, any other place or time, what the doctor reads.")
    return Section("guarantee", title, stages, words)


def reading(metrics: Mapping[str, Any]) -> Section:
    """Sensitivity, specificity and AUROC, and predictive values at several prevalences."""
    found, ensemble = metrics.get("deferral", {}), metrics.get("ensemble", {})
    rates = [["", "where it decides", "deciding all"]]
    for name in ("sensitivity", "specificity"):
        rates.append([name, figure(found, f"decided_{name}"), figure(found, f"deciding_all_{name}")])
    values = [["positive among all that come", "positive calls right", "negative calls right"]]
    if {"n", "n_positive"} <= found.keys():
        here = {name: figure(found, f"decided_{name}") for name in ("precision", "negative_predictive_value")}
        values.append([f"{100 * found['n_positive'] / found['n']:.0f} % (test)", *here.values()])
    for prevalence, one in found.get("at_prevalence", {}).items():
        row = [figure(one, "precision"), figure(one, "negative_predictive_value")]
        values.append([f"{100 * float(prevalence):g} %", *row])
    if len(values) == 1:
        values.append(["any", NOT_MEASURED, NOT_MEASURED])
    auroc = figure(at(ensemble, "in_use"), "auroc", percent=False)
    way = plain(ensemble, "combine").replace("_", " ")
    words = [f"AUROC of what decides ({way}): {auroc}."]
    return Section("reading", "How well it reads", "ensemble", words, [rates, values])


def calibration(metrics: Mapping[str, Any], members: Mapping[str, str]) -> Section:
    """Calibration errors of each member before and after, and of the ensemble where it decides, beside their floors."""
    found, head = metrics.get("calibration", {}), ["", "ECE before", "after", "floor", "in the large, after"]
    table = [head]
    for name in list(members)[:MOST_MEMBERS] or ["members"]:
        before, after = at(found, name, "before"), at(found, name, "after")
        errors = [figure(at(one, "positive_class_ece_uniform"), "ece", percent=False) for one in (before, after)]
        floor = figure(at(after, "positive_class_ece_uniform"), "noise_floor_p95", percent=False)
        table.append([name, *errors, floor, _signed(after, "in_the_large")])
    decided = at(metrics, "deferral", "calibration_of_decided", "decided")
    ends = [figure(decided, name, percent=False) for name in ("ece", "noise_floor_p95")]
    table.append(["the decided", "not applicable because combined after it", *ends])
    table[-1].append(_signed(decided, "in_the_large"))
    chosen = [f"{plain(at(one, 'calibrator'), 'name')} for {name}" for name, one in found.items() if name in members]
    told = [f"Chosen calibrators: {_few(chosen) or NOT_MEASURED}."]
    told.append("Floor: 95 of 100 draws of calibrated cases stay below it. In the large: 0 is right.")
    return Section("calibration", "Calibration, before and after", "calibration, ensemble", told, [table])


def _signed(found: Mapping[str, Any], name: str) -> str:
    if not {name, f"{name}_low", f"{name}_high"} <= found.keys():
        return figure(found, name, percent=False)
    value, low, high = (found[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def uncertainty(metrics: Mapping[str, Any], members: Mapping[str, str]) -> Section:
    """Whether doubt finds errors, whether anything beats the plain margin, and whether strange images are noticed."""
    table = [["", "margin finds errors, adjusted AUROC", "better than it", "confident errors", "strange ones refused"]]
    for name in list(members)[:MOST_MEMBERS] or ["members"]:
        own = at(metrics, "uncertainty", name)
        surest = at(own, "quadrants", "confident_error")
        table.append(
            [
                name,
                figure(at(own, "margin"), "adjusted_error_auroc", percent=False),
                _better(own),
                f"{plain(surest, 'n', 'd')} of {plain(own, 'n_errors', 'd')}" if surest else NOT_MEASURED,
                _strange(at(metrics, "out_of_distribution", "foreign")),
            ]
        )
    return Section("uncertainty", "Does doubt find errors?", "uncertainty", (), [table])


def _better(own: Mapping[str, Any]) -> str:
    """What finds errors better than the margin, or how little the largest gain is worth, with size and interval."""
    needed = {"over_margin", *(f"gain_over_margin{end}" for end in ("", "_low", "_high"))}
    gains = {name: one for name, one in own.items() if isinstance(one, Mapping) and needed <= one.keys()}
    if not gains:
        return NOT_MEASURED

    def sized(name: str) -> str:
        value, low, high = (gains[name][f"gain_over_margin{end}"] for end in ("", "_low", "_high"))
        return f"{name.replace('_', ' ')} ({value:+.3f}, {low:.3f} to {high:.3f})"

    if better := [sized(name) for name, one in gains.items() if one["over_margin"] == "better"]:
        return _few(better)
    largest = max(gains, key=lambda name: gains[name]["gain_over_margin"])
    answer = {"not shown": "a worthwhile gain is not shown"}
    return f"{answer.get(gains[largest]['over_margin'], 'no worthwhile gain')}: {sized(largest)} at most"


def _strange(kinds: Mapping[str, Any]) -> str:
    known = {kind.replace("_", " "): of["refused"] for kind, of in kinds.items() if "refused" in of}
    passed = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in known.items() if share < 1)
    return (f"all but {passed}" if passed else "all") if known else NOT_MEASURED


def explanations(metrics: Mapping[str, Any], members: Mapping[str, str]) -> Section:
    """What the maps are good for."""
    table = [["", "maps", "border hidden, flips", "unstable maps go with errors"]]
    for name in list(members)[:MOST_MEMBERS] or ["members"]:
        maps, errors = at(metrics, "explanations", name), at(metrics, "stability", name, "errors")
        flips = figure(maps, "border_flip_rate")
        judged = map_verdict.sentence(maps["verdict"]) if "verdict" in maps else NOT_MEASURED
        table.append([name, judged, flips, _claimed(errors)])
    words = ["A map shows where the network looked, not where disease is."]
    return Section("explanations", "Limits of the explanations", "explanations, stability", words, [table])


def _claimed(errors: Mapping[str, Any]) -> str:
    """The claim's answer with its size, and the named class where it rests on one alone."""
    claim = at(errors, "claim")
    if not {"answer", "measure"} <= claim.keys():
        return NOT_MEASURED
    if "reason" in claim:
        return f"{claim['answer']}: {claim['reason']}"
    entry = at(errors, claim["measure"])
    alone = {"called_positive": ", positive calls alone", "called_negative": ", negative calls alone"}
    size = figure(entry, "adjusted_error_auroc", percent=False)
    return f"{claim['answer']}, adjusted AUROC {size}{alone.get(entry.get('rests_on', ''), '')}"


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


YARDSTICKS = ("random_deferral", "margin_deferral", "plain_margin_deferral", "oracle_deferral", "doctor_reads_all")


def deferral(found: Mapping[str, Any]) -> Section:
    """What handing cases to a doctor does, and what it is worth."""
    table = [["", "cost per case", "this policy saves"]]
    saved = "not applicable because it is this policy"
    table.append(["this policy", figure(found, "failure_cost", percent=False), saved])
    for label, rival in (
        ("first member decides all", "baseline_decides_all"),
        ("the same at p > 0.5", "baseline_at_half_decides_all"),
        ("ensemble decides all", "ensemble_decides_all"),
    ):
        costs = at(found, rival)
        table.append([label, figure(costs, "cost", percent=False), figure(costs, "reduction")])
    shares = figure(_share_deferred(found), "deferral_rate"), figure(found, "selective_risk")
    words = [f"Handed to a doctor: {shares[0]}. Wrong where it decides: {shares[1]}."]
    lot, margin, plain_margin, oracle, doctor = (figure(found, f"{name}_cost", percent=False) for name in YARDSTICKS)
    words.append(
        f"At the same referral rate: random referral {lot}, the margin {margin}, the plain margin |2p - 1|"
        f" {plain_margin}, perfect foresight {oracle}. A doctor who reads every case: {doctor}."
    )
    learned = at(found, "learned")
    certainty = {
        True: "the margin, lowered by doubts",
        False: "the margin; no doubt was shown to save cost",
    }
    words.append(f"Certainty: {certainty.get(bool(learned.get('used'))) if learned else NOT_MEASURED}.")
    foreign = figure(found, "out_of_distribution")
    words.append(f"Unlike the training images and never decided: {foreign} of these cases.")
    return Section("deferral", "What deferral buys", "ensemble", words, [table])


def _share_deferred(found: Mapping[str, Any]) -> dict[str, float]:
    """The deferral rate with the interval of the coverage, turned round."""
    if not {"deferral_rate", "coverage_low", "coverage_high"} <= found.keys():
        return {name: found[name] for name in ("deferral_rate",) if name in found}
    ends = {"deferral_rate_low": 1 - found["coverage_high"], "deferral_rate_high": 1 - found["coverage_low"]}
    return {"deferral_rate": found["deferral_rate"]} | ends


def subgroups(found: Mapping[str, Any]) -> Section:
    """For whom it decides, how often wrongly, and whether deferral widens the gap: classes first, then the riskiest."""
    groups = {name: one for name, one in at(found, "subgroups").items() if isinstance(one, Mapping)}
    table = [["", "n", "decided", "wrong where decided", "deferral and the gap"]]
    ordered = sorted(groups, key=lambda name: (name not in CLASSES, -groups[name].get("selective_risk", -1)))
    for name in ordered[:MOST_SUBGROUPS]:
        one = groups[name]
        row = [CLASSES.get(name, name), plain(one, "n", "d"), figure(one, "coverage"), figure(one, "selective_risk")]
        table.append([*row, one.get("words", "too few to compare").removeprefix("deferral ")])
    words = []
    if len(ordered) > MOST_SUBGROUPS:
        words.append(
            f"{len(ordered) - MOST_SUBGROUPS} more, with fewer errors among the decided: metrics/ensemble.json."
        )
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
        f"Does test look like the place it learned from? {shift.get('words', NOT_MEASURED)}",
    ]


def described(members: Mapping[str, str]) -> list[str]:
    """The members, and how many of them have no row in the tables above."""
    told = [f"{name}: {what}." for name, what in list(members.items())[:MOST_MEMBERS]] or [f"Members: {NOT_MEASURED}."]
    more = list(members)[MOST_MEMBERS:]
    return [*told, f"{_few(more)}: params.yaml, and metrics/ for their figures."] if more else told


def data(metrics: Mapping[str, Any]) -> Section:
    """The splits and what the audit of the data found."""
    found = metrics.get("prepare", {})
    splits = [
        f"{name} {plain(one, 'images', 'd')} images of {plain(one, 'patients', 'd')} patients"
        f" ({plain(one, 'positives', 'd')} positive)"
        for name, one in at(found, "splits").items()
    ]
    problems = {name: max(one.values(), default=0) for name, one in at(found, "problems").items()}
    seen = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in problems.items() if count)
    clear = ", ".join(name.replace("_", " ") for name, count in problems.items() if not count)
    audit = (
        f"found: {seen or 'no problem'}; looked for and not found: {clear or 'nothing'}" if problems else NOT_MEASURED
    )
    words = [f"Splits by patient: {'; '.join(splits) or NOT_MEASURED}.", f"Audit: {audit}."]
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


NOTE = (
    "A research tool, not a medical device. Figures are of the test split, brackets hold 95 % intervals over patients."
    f' Every field says a value, "{NOT_MEASURED}" or "not applicable because".'
)
CROSSWALK_NOTE = (
    "Wording is abridged and ours; read the guidelines themselves: TRIPOD+AI (Collins et al. 2024), CLAIM 2024 (Tejani"
    " et al. 2024), Model Facts (Sendak et al. 2020; its label has no numbers, these are ours). They ask about a study,"
    " and this card answers for a model: what belongs into a paper is missing."
)


def write(folder: str | Path, told: Card) -> None:
    """The card as `trust_card.html` and `trust_card.md` in a folder."""
    for ending, text in (("html", as_html(told)), ("md", as_markdown(told))):
        with whole(Path(folder) / f"trust_card.{ending}") as temporary:
            temporary.write_text(text, encoding="utf-8")


def as_html(told: Card) -> str:
    """The card as one HTML file that needs no network: it prints on A4 and Letter, a page and the crosswalk."""
    parts = {section.key: _section_html(section) for section in told.sections}
    parts["happens"] = parts["happens"].replace("</section>", f"{_hundred_html(told.hundred)}</section>")
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        parts,
        title=escape(told.title),
        warning=f'<p class="warning">{escape(told.warning)}</p>' if told.warning else "",
        note=escape(NOTE),
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
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(map(_cell_html, row[1:]))}</tr>' for row in body
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"


def _cell_html(text: str) -> str:
    kind = ' class="number"' if re.fullmatch(r"[-+]?\d[^a-z]*( to [^a-z]*)?", text) else ""
    return f"<td{kind}>{escape(text)}</td>"


def _hundred_html(hundred: Mapping[str, int]) -> str:
    """A hundred squares, 20 a row, told apart by pattern and not by colour, and their legend; "" for none."""
    if not hundred:
        return ""
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
        params = ", ".join(f"{name} {_plain(value)}" for name, value in _flat(source.params).items())
        table.append(
            [source.stage, files or "not applicable because it is where this card is made", params or NOT_MEASURED]
        )
    return table if sources else [*table, ["any", NOT_MEASURED, NOT_MEASURED]]


def _flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Nested parameters by dotted name."""
    found: dict[str, Any] = {}
    for name, value in params.items():
        nested = _flat(value) if isinstance(value, dict) else None
        found |= {name: value} if nested is None else {f"{name}.{inner}": one for inner, one in nested.items()}
    return found


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
    return "\n\n".join(parts).replace("<", "&lt;") + "\n"


def _table_markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

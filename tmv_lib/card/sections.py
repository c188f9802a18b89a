"""The sections of the trust card, as values: sentences and tables made from the metrics of the stages that have run."""

from collections.abc import Callable
from typing import NamedTuple

from tmv_lib.card import in_use, policy
from tmv_lib.card.answers import answer_of, audit_of, better_than_margin, kinds_of, not_run, unstable_maps
from tmv_lib.card.identity import Identity
from tmv_lib.card.policy import MOST_MEMBERS, Body, Run, Table
from tmv_lib.card.traced import Read
from tmv_lib.card.words import NOT_MEASURED, counted, few, number, plain, share, signed
from tmv_lib.explanations import map_verdict
from tmv_lib.pipeline.record import Figures


class Section(NamedTuple):
    """A question of the card with the sentences and tables that answer it.

    answered: whether its stage has run. figures: what was read of the metrics to answer it, by file and keys.
    """

    key: str
    title: str
    stages: str
    words: list[str]
    tables: list[Table]
    answered: bool
    figures: Read


def sections(run: Run, identity: Identity) -> list[Section]:
    """All sections, in the order of the card. Raises ValueError naming file and key of a figure that is not there."""
    made = [section(key, run) for key in SECTIONS]
    known = bool(identity.commit and identity.recorded)
    return [*made, Section("identity", "Which run this is", "git, dvc.lock", identity.words(), [], known, {})]


def section(key: str, run: Run) -> Section:
    """The section of this key."""
    title, stages, needs, body = SECTIONS[key]
    answered, read = not needs or run.metrics[needs] is not None, Read()
    words, tables = body(run.traced(read)) if answered else ([f"{not_run(needs)}."], [])
    return Section(key, title, stages, words, tables, answered, read)


def _reading(run: Run) -> Body:
    """Sensitivity, specificity and AUROC, and predictive values at several prevalences."""
    found, ways = (run.metrics["ensemble"][name] for name in ("deferral", "ensemble"))
    rates = [["", "where it decides", "deciding all"]]
    for name in ("sensitivity", "specificity"):
        rates.append([name, *(share(found.estimate(f"{of}_{name}")) for of in ("decided", "deciding_all"))])
    names = ("precision", "negative_predictive_value")
    here = [share(found.estimate(f"decided_{name}")) for name in names]
    values = [["positive among all that come", "positive calls right", "negative calls right"]]
    values.append([f"{100 * found['n_positive'] / found['n']:.0f} % (test)", *here])
    for prevalence, one in found["at_prevalence"].items():
        values.append([f"{100 * float(prevalence):g} %", *(share(one.estimate(name)) for name in names)])
    auroc = number(ways["in_use"].estimate("auroc"))
    return [f"AUROC of what decides ({plain(ways['combine'])}): {auroc}."], [rates, values]


def _calibration(run: Run) -> Body:
    """Calibration errors of each member before and after, and of the ensemble where it decides, beside their floors."""
    found, ensemble = run.metrics["calibration"]["calibration"], run.metrics["ensemble"]
    table = [["", "ECE before", "after", "floor", "in the large, after"]]
    for name in run.rows:
        (before, _), ends = (_ece(found[name][phase]) for phase in ("before", "after"))
        table.append([name, before, *ends, signed(found[name]["after"].estimate("in_the_large"))])
    if ensemble is not None:
        decided = ensemble["deferral"]["calibration_of_decided"]["decided"]
        if "noise_floor_p95" in decided:  # not where nothing is decided
            combined = "not applicable because combined after it"
            table.append(["the decided", combined, *_errors(decided), signed(decided.estimate("in_the_large"))])
    chosen = [f"{one['calibrator']['name']} for {name}" for name, one in found.items()]
    words = [f"Chosen calibrators: {few(chosen)}."]
    words.append("Floor: 95 of 100 draws of calibrated cases stay below it. In the large: 0 is right.")
    return words, [table]


def _ece(phase: Figures) -> list[str]:
    """The calibration error and its floor; where there are too few cases for bins, why there is none."""
    test = phase.get("positive_class_ece_uniform")
    return [number(phase.estimate("positive_class_ece_uniform"))] * 2 if test is None else _errors(test)


def _errors(test: Figures) -> list[str]:
    return [f"{test[name]:.3f}" for name in ("ece", "noise_floor_p95")]


def _uncertainty(run: Run) -> Body:
    """Whether doubt finds errors, whether anything beats the plain margin, and whether strange images are noticed."""
    found = run.metrics["uncertainty"]
    table = [["", "margin, adjusted AUROC", "anything better?", "confident errors", "strange images refused"]]
    for name in run.rows:
        own = found["uncertainty"][name]
        surest = f"{own['quadrants']['confident_error']['n']} of {own['n_errors']}"
        margin = number(own["margin"].estimate("adjusted_error_auroc"))
        table.append([name, margin, better_than_margin(own), surest, _strange(found["out_of_distribution"])])
    return [], [table]


def _strange(found: Figures) -> str:
    if "absent" in found:
        return str(found["absent"])
    refused = {plain(kind): one.estimate("refused").value for kind, one in found["foreign"].items()}
    passed = [f"{kind} ({100 * part:.0f} %)" for kind, part in refused.items() if part is not None and part < 1]
    return f"all but {', '.join(passed)}" if passed else "all"


def _explanations(run: Run) -> Body:
    stability = run.metrics["stability"]
    table = [["", "maps", "border hidden, flips", "unstable maps go with errors"]]
    for name in run.rows:
        maps = run.metrics["explanations"]["explanations"][name]
        unstable = NOT_MEASURED if stability is None else unstable_maps(stability["stability"][name])
        flips = share(maps.estimate("border_flip_rate"))
        table.append([name, map_verdict.sentence(maps["verdict"]), flips, unstable])
    words = "A map shows where the network looked, not where disease is. Flips: answers that change once the border of"
    return [f"{words} the image is hidden."], [table]


def _failures(run: Run) -> Body:
    """The kinds of the ensemble's errors, and how many of each deferral catches."""
    kinds, ensemble = kinds_of(run.metrics["failures"]["failures"]["ensemble"]), run.metrics["ensemble"]
    caught = {} if ensemble is None else ensemble["deferral"]["failures"]
    rows = []
    for name, one in kinds.items():  # the policy's decisions put some kinds right altogether
        rate = share(caught[name].estimate("caught")) if name in caught else NOT_MEASURED
        rows.append([f"{name} ({one['n']})", share(one.estimate("share")), rate])
    rows = rows or [["any", *["not applicable because there is no error"] * 2]]
    return [], [[["kind", "of its errors", "deferral catches"], *rows]]


def _place(run: Run) -> Body:
    site = run.metrics["site"]
    facts = {"external_validation": "external validation", "human_ai_test": "test with doctors who use it"}
    words = [
        " ".join(_told(run, facts)),
        f"Does test look like the place it learned from? {NOT_MEASURED if site is None else answer_of('site', site)}",
    ]
    return [*words, *_in_use(run)], []


def _in_use(run: Run) -> list[str]:
    """The answers of acceptance test and monitoring, and when to stop; promise by promise would not fit on a page."""
    words, unknown = [], []
    for name, (question, command, say) in in_use.AFTER.items():
        figures = run.metrics.get(name)
        if figures is None:
            unknown.append(command)
        else:
            words.append(f"{question} {' '.join(say(figures)[: SHOWN[name]])}")
    return [*words, *([f"In use: {NOT_MEASURED}: {' and '.join(unknown)} have not run."] if unknown else [])]


SHOWN = {"acceptance": 1, "monitor": 2}  # sentences of each on the card


def _members(run: Run) -> Body:
    """The members, and how many of them have no row in the tables above."""
    words = [f"{name}: {run.members[name]}." for name in run.rows]
    more = list(run.members)[MOST_MEMBERS:]
    return [*words, *([f"{few(more)}: params.yaml, and metrics/ for their figures."] if more else [])], []


def _data(run: Run) -> Body:
    found = run.metrics["prepare"]["prepare"]
    counts = [
        f"{name} has {counted(one['images'], 'images')} of {counted(one['patients'], 'patients')}, {_labelled(one)}"
        for name, one in found["splits"].items()
    ]
    return [f"Splits by patient: {'; '.join(counts)}.", audit_of(found), *_asked(run)], []


def _labelled(split: Figures) -> str:
    """How many images of a split have which label."""
    if "positives" in split:
        return f"{split['positives']:,} positive"
    if "classes" in split:
        return ", ".join(f"{count:,} {name}" for name, count in split["classes"].items())
    return ", ".join(f"{one['positive']:,} with {name}" for name, one in split["findings"].items())


def _asked(run: Run) -> list[str]:
    """Which of several classes or findings this card is about, and the cases that nobody labelled for it."""
    baseline = run.metrics["baseline"]
    question = None if baseline is None else baseline["baseline"].get("question")
    if question is None:
        return []
    left_out = sum(count for _, count in question["not_labelled"].items())
    _, first = next(iter(run.metrics["prepare"]["prepare"]["splits"].items()))
    names = ", ".join(first["classes"] if "classes" in first else first["findings"])
    words = f"This card is about {question['positive']}, one question put to networks that tell apart {names}."
    return [words + (f" {counted(left_out, 'images')} are not labelled for it and left out." if left_out else "")]


def _people(run: Run) -> Body:
    names = ("users", "population", "place", "reference_standard", "owner", "contact", "monitoring")
    return _told(run, {name: plain(name) for name in names}), []


def _study(run: Run) -> Body:
    return _told(run, {name: plain(name) for name in ("ethics", "funding")}), []


def _told(run: Run, names: dict[str, str]) -> list[str]:
    """Facts by what they are called, a sentence each; those of which the same is to be said share one."""
    called: dict[str, list[str]] = {}
    for name, words in names.items():
        called.setdefault(run.facts.text(name), []).append(words)
    return [f"{', '.join(words).capitalize()}: {text}." for text, words in called.items()]


# Each section's title, the stages it is made from, the one without which it is not measured, and what makes it.
SECTIONS: dict[str, tuple[str, str, str, Callable[[Run], Body]]] = {
    "verdict": ("When should I use this?", "ensemble", "ensemble", policy.answer),
    "use": ("Use it when", "ensemble, a person", "", policy.use),
    "do_not_use": ("Do not use it when", "all stages, a person", "", policy.do_not_use),
    "happens": ("What happens", "ensemble", "ensemble", policy.happens),
    "guarantee": ("What is promised, and what is not", "ensemble, site", "ensemble", policy.promises),
    "reading": ("How well it reads", "ensemble", "ensemble", _reading),
    "calibration": ("Calibration, before and after", "calibration, ensemble", "calibration", _calibration),
    "uncertainty": ("Does doubt find errors?", "uncertainty", "uncertainty", _uncertainty),
    "explanations": ("Limits of the explanations", "explanations, stability", "explanations", _explanations),
    "failures": ("Kinds of failure", "failures, ensemble", "failures", _failures),
    "deferral": ("What deferral buys", "ensemble", "ensemble", policy.deferral),
    "subgroups": ("For whom", "ensemble", "ensemble", policy.subgroups),
    "site": ("Another place, and in use", "site, a person", "", _place),
    "members": ("Members", "train", "", _members),
    "data": ("Data", "prepare", "prepare", _data),
    "study": ("Ethics and funding", "a person, card.yaml", "", _study),
    "people": ("Who answers for it", "a person, card.yaml", "", _people),
}
# What stands on the first page: what a clinician needs before the first case. The rest is the appendix.
CLINICIAN = (
    *("verdict", "use", "do_not_use", "happens", "guarantee", "reading", "deferral"),
    *("site", "people", "identity"),
)

"""The report on one question: the trust card, then the evidence, the limits, and how to make the report again.

One HTML file that needs nothing else. Its figures are those of metrics/ beside it, its pictures those of plots/.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tmv_lib.card import pages
from tmv_lib.card.answers import ANSWERS, answer_of, compared, groups_of, not_run
from tmv_lib.card.card import read_card, shown
from tmv_lib.card.identity import identify
from tmv_lib.card.policy import Table
from tmv_lib.card.words import number, plain, share, signed
from tmv_lib.deferral.verdict import RIVALS
from tmv_lib.pipeline.files import whole
from tmv_lib.pipeline.params import Member
from tmv_lib.pipeline.record import Figures, read_metrics
from tmv_lib.pipeline.stage import HERE
from tmv_lib.report.diagrams import diagrams, reading


class Origin(NamedTuple):
    """How the report came about: the command, and the SHA-256 of each file that it read, by name."""

    command: str
    files: Mapping[str, str]


def write_report(
    root: Path,
    members: Mapping[str, Member | None],
    *,
    subject: str,
    questions: Mapping[str, str],
    remarks: Sequence[str],
    origin: Origin,
) -> None:
    """Write `report.html` of the run below root, into it.

    subject: what the title names. questions: by stage, those that were asked. remarks: what limits the answers.
    """
    metrics = {stage: read_metrics(stage, root=root) for stage in ANSWERS}
    run = {stage: figures for stage, figures in metrics.items() if figures is not None}
    asked = {questions[stage]: _answer(stage, figures) for stage, figures in run.items() if stage in questions}
    page = pages.fill(
        "report/report.html.j2",
        **shown(read_card(members, root=root)),
        subject=subject,
        remarks=remarks,
        answers=asked,
        diagrams=diagrams(metrics, root),
        tables=tables(run),
        unknown=unknown(metrics),
        single=single(run),
        origin=origin,
        code=identify(HERE, {}),
    )
    with whole(root / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def _answer(stage: str, figures: Figures) -> str:
    """A stage's answer; of two members without what an earlier study said of its own."""
    return compared(figures) if stage == "diversity" else answer_of(stage, figures)


def tables(run: Mapping[str, Figures]) -> dict[str, Table]:
    """The figures behind the answers with their intervals, by heading; of the stages that have run."""
    made = {}
    if "ensemble" in run:
        made["The policy: decide, or hand to a doctor"] = _policy(run["ensemble"])
    if "baseline" in run:
        made["How each model reads, deciding every case"] = _reading(run)
    if "calibration" in run:
        made["Whether its probabilities are right"] = _calibration(run["calibration"]["calibration"])
    return made


def _policy(ensemble: Figures) -> Table:
    found, verdict = ensemble["deferral"], ensemble["verdict"]
    rows = [
        ["share of cases that it decides (coverage)", share(found.estimate("coverage"))],
        ["wrong among the decided (selective risk)", share(found.estimate("selective_risk"))],
        ["positives missed, of all positives", share(verdict.estimate("missed"))],
        ["sensitivity where it decides", share(found.estimate("decided_sensitivity"))],
        ["specificity where it decides", share(found.estimate("decided_specificity"))],
        ["cost per case", number(found.estimate("failure_cost"))],
        ["price of a review up to which it pays", number(found.estimate("break_even_review_price"))],
    ]
    rows += [
        [f"cost, less that of {RIVALS[name]} ({one['cost']:.3f})", number(one.estimate("difference"))]
        for name, one in groups_of(verdict["against"]).items()
    ]
    return [["", "value (95 % interval)"], *rows]


def _reading(run: Mapping[str, Figures]) -> Table:
    members = reading(run)
    rows = [
        [words, *(number(one.estimate(name)) for one in members.values())]
        for name, words in (("auroc", "AUROC"), ("average_precision", "average precision"), ("nll", "log loss"))
    ]
    rows += [
        [
            f"{plain(name)} at a probability above 0.5",
            *(share(one["at_half"].estimate(name)) for one in members.values()),
        ]
        for name in ("sensitivity", "specificity", "precision", "negative_predictive_value", "accuracy")
    ]
    return [["", *members], *rows]


def _calibration(members: Figures) -> Table:
    rows = []
    for name, one in groups_of(members).items():
        for phase, words in (("before", "as it came"), ("after", "calibrated on val")):
            own = one[phase]
            error = own.get("positive_class_ece_uniform")
            ends = (
                ["too few cases"] * 2 if error is None else [f"{error[key]:.3f}" for key in ("ece", "noise_floor_p95")]
            )
            spread = [number(own.estimate("slope")), signed(own.estimate("in_the_large"))]
            rows.append([f"{name}, {words}", *ends, *spread, number(own.estimate("brier_score"))])
    return [["", "ECE", "noise floor", "slope (1 is right)", "in the large (0 is right)", "Brier score"], *rows]


def unknown(metrics: Mapping[str, Figures | None]) -> Table:
    """What the run cannot say at all, and why; what has the same reason stands together."""
    by_reason: dict[str, dict[str, None]] = {}
    for stage, figures in metrics.items():
        if figures is None:
            what, why = NOT_ASKED.get(stage, (stage, not_run(stage)))
            by_reason.setdefault(why, {})[what] = None
        else:
            for keys, reason in figures.absences():
                if what := CANNOT.get(keys.split(" ")[-1], ""):
                    by_reason.setdefault(reason, {})[what] = None
    return [["what", "why not"], *([", ".join(what), why] for why, what in by_reason.items())]


def single(run: Mapping[str, Figures]) -> str:
    """How many single figures have a reason in their place, by stage."""
    counts = {
        stage: sum(keys.split(" ")[-1] not in CANNOT for keys, _ in figures.absences())
        for stage, figures in run.items()
    }
    return ", ".join(f"{count} of {stage}" for stage, count in counts.items() if count)


NEEDS_IMAGES = "it takes the images and the network, and only predictions are known"
NOT_ASKED = {  # by stage that has not run: what it would say, and why it does not
    "explanations": ("where the model looks", NEEDS_IMAGES),
    "stability": ("whether its reasons survive small changes", NEEDS_IMAGES),
    "failures": ("what kinds of mistakes it makes", NEEDS_IMAGES),
    "diversity": ("whether another model errs on other images", "it takes the predictions of a second model"),
    "baseline": ("how it reads when it decides every case", "it is not asked of one among many findings"),
}
CANNOT = {  # by the last key of a figure that is absent: what is not known without it
    "features": "whether the images look different, whatever the model says of them",
    "control": "whether such a difference would be noticed",
    "columns": "which device, view or date goes with a difference",
    "dropout": "how far the model doubts under dropout",
    "out_of_distribution": "whether an image is unlike those that the model was trained on",
    "subgroups": "for whom it errs more often, the two classes excepted",
}

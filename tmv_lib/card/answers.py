"""Each question's answer in a sentence or two: what card, viewer and `make answers` show.

A metrics file holds values and enumerations; the words for them stand here.
"""

from collections.abc import Callable
from pathlib import Path

from tmv_lib.card import in_use
from tmv_lib.card.words import NOT_MEASURED, counted, few, number, plain, share
from tmv_lib.deferral import verdict
from tmv_lib.explanations import map_verdict
from tmv_lib.pipeline.params import read_yaml
from tmv_lib.pipeline.record import Figures, read_metrics

LEVEL = 0.05
LOOKS = {  # by `shift.name` of `site`
    "none": "No difference between site and source was shown at this number of patients; that is no proof that there is"
    " none.",
    "prevalence": "The share of positives looks different, harm unknown; within neither class was a difference shown.",
    "both_classes": "Positives and negatives both look different here, harm unknown; another share of positives alone"
    " does not explain it.",
    "negative_class": "Negatives look different here, harm unknown; among positives no difference was shown, which is"
    " no proof that there is none.",
    "positive_class": "Positives look different here, harm unknown; among negatives no difference was shown, which is"
    " no proof that there is none.",
    "unnamed": "The cases look different here, harm unknown; neither in the share of positives nor within one class was"
    " a difference shown, and more cases are needed to say how.",
}
BLAME = {  # of a miscalibration, by `<member>.interaction.blame` of `site`
    "site": "the probabilities are off at the site, and otherwise than at the source",
    "home": "the probabilities are off at the source already",
    "neither": "no miscalibration was shown at source or site",
    "unclear": "these labels do not say where a miscalibration comes from",
}
PROBLEMS = {  # of the audit, by key of `prepare`
    "duplicate": "duplicates",
    "near_duplicate": "near duplicates",
    "duplicate_across_splits": "duplicates across splits",
    "contradicting_label": "contradicting labels",
    "patient_in_two_splits": "patients in two splits",
    "blank": "blank images",
    "unreadable": "unreadable files",
    "doubtful": "files read with a doubt",
    "ignored_label": "unusable labels",
    "colour_as_grey": "colour read as grey",
    "grey_as_colour": "grey read as colour",
}
CLAIM = {  # "the second ranks better, the first is better calibrated", by `claim` of `diversity`
    "supported": "The second ranks better and is calibrated worse, as in the study that this pipeline follows.",
    "contradicted": "In the study that this pipeline follows the second ranked better and was calibrated worse; this"
    " run contradicts it.",
    "not_supported": "That the second ranks better and is calibrated worse was not shown.",
}


def questions(root: str | Path = ".") -> dict[str, str]:
    """The questions by stage: the `desc` of dvc.yaml of every stage with an answer, then the two after the study."""
    stages = read_yaml(Path(root) / "dvc.yaml")["stages"]
    asked = {name: stage["desc"] for name, stage in stages.items() if name in ANSWERS}
    return asked | {name: question for name, (question, _, _) in in_use.AFTER.items()}


def answer_of(stage: str, figures: Figures) -> str:
    """The answer of one stage from its figures."""
    return ANSWERS[stage](figures)


def answer(stage: str, root: str | Path = ".") -> str:
    """The answer of one stage. Raises ValueError where its metrics file lacks a figure that the sentence needs."""
    figures = read_metrics(stage, root=root)
    if stage in in_use.AFTER:
        _, command, words = in_use.AFTER[stage]
        return f"{NOT_MEASURED}: `{command}` has not run" if figures is None else " ".join(words(figures))
    return not_run(stage) if figures is None else answer_of(stage, figures)


def not_run(stage: str) -> str:
    return f"{NOT_MEASURED}: the stage `{stage}` has not run"


def groups_of(figures: Figures) -> dict[str, Figures]:
    """The groups of figures that stand among others, each a member, say."""
    return {name: one for name, one in figures.items() if isinstance(one, Figures) and name != "ensemble"}


def _prepare(figures: Figures) -> str:
    found = figures["prepare"]
    images, patients = (sum(split[key] for split in found["splits"].values()) for key in ("images", "patients"))
    return f"{images:,} images of {patients:,} patients. {audit_of(found)}"


def audit_of(prepare: Figures) -> str:
    """What the audit of the data found, and what it looked for without finding any."""
    texts = {}
    for name, one in prepare["problems"].items():
        unit = "files" if "files" in one else "images"
        what, count = PROBLEMS.get(name, plain(name)), one[unit]
        texts[what] = f"{what} ({counted(count, unit)})" if count else ""
    clear = ", ".join(name for name, text in texts.items() if not text)
    seen = ", ".join(text for text in texts.values() if text) or "no problem"
    return f"The audit found {seen}." + (f" It looked for {clear} and found none." if clear else "")


def _calibration(figures: Figures) -> str:
    parts = []
    for name, member in groups_of(figures["calibration"]).items():
        parts.append(f"{name}: {calibrated(member['after'])}, slope {number(member['after'].estimate('slope'))}")
    return f"{'; '.join(parts)}."


def calibrated(phase: Figures) -> str:
    """Whether probabilities are off by more than chance gives, with the error and its floor."""
    test = phase.get("positive_class_ece_uniform")  # left out with too few cases for its bins
    if test is None:
        return "too few cases for a calibration error"
    error = "no sign of miscalibration" if test["p_value_holm"] >= LEVEL else "not calibrated"
    corrected = test["p_value_holm"] >= LEVEL > test["p_value"]
    error += " once corrected for the number of tests" if corrected else ""
    floor = f"a calibrated model stays below {test['noise_floor_p95']:.3f} in 95 of 100 draws"
    return f"{error}, ECE {test['ece']:.3f} ({floor})"


def _site(figures: Figures) -> str:
    site = figures["site"]
    known = site["shift"]["training_patients_at_the_site"]
    warning = f" The networks were trained on {counted(known, 'patients')} of the site." if known else ""
    blame = blamed(site)
    return f"{LOOKS[site['shift']['name']]}{f' Calibration: {blame}.' if blame else ''}{warning}"


def blamed(site: Figures) -> str:
    """Where a miscalibration comes from, member by member; "" where that was not tested."""
    members: dict[str, list[str]] = {}
    for name, one in groups_of(site).items():
        if "interaction" in one:
            members.setdefault(one["interaction"]["blame"], []).append(name)
    return "; ".join(f"{BLAME[kind]} ({', '.join(names)})" for kind, names in members.items())


def _baseline(figures: Figures) -> str:
    one = figures["baseline"]
    rates = (f"{name} {share(one['at_half'].estimate(name))}" for name in ("sensitivity", "specificity"))
    return (
        f"{one['member']}: AUROC {number(one.estimate('auroc'))}; at p > 0.5 {' and '.join(rates)}, on"
        f" {counted(one['n'], 'images')} of {counted(one['n_patients'], 'patients')}."
    )


def _diversity(figures: Figures) -> str:
    return f"{compared(figures)} {CLAIM[figures['diversity']['claim']]}"


def compared(figures: Figures) -> str:
    """What the second member changes."""
    both = figures["diversity"]
    first, second, together = (both[name] for name in ("first", "second", "together"))
    only, shared = together["only_first_wrong"] + together["only_second_wrong"], together["double_fault"]
    better = together["ranks_better"]
    ranks = f"{better} ranks better" if better in (first, second) else "neither is shown to rank better"
    return (
        f"{second} disagrees with {first} on {share(together.estimate('disagreement_rate'))} of the images; one of"
        f" them alone is wrong on {only}, both on {shared}; {ranks}."
    )


def _uncertainty(figures: Figures) -> str:
    parts = []
    for name, member in groups_of(figures["uncertainty"]).items():
        surest = member["quadrants"]["confident_error"]["n"]
        margin = number(member["margin"].estimate("adjusted_error_auroc"))
        parts.append(
            f"{name}: the plain margin finds errors with an adjusted AUROC of {margin}; {better_than_margin(member)};"
            f" confident errors: {surest} of {member['n_errors']}"
        )
    return f"{'. '.join(parts)}."


def better_than_margin(member: Figures) -> str:
    """What finds errors better than the margin, or how little the largest gain is worth."""
    gains = {
        name: (one["over_margin"], one.estimate("gain_over_margin"))
        for name, one in groups_of(member).items()
        if "gain_over_margin" in one  # not of the margin itself, and of no signal with too few errors
    }
    if not gains:
        return "nothing could be compared with the margin"
    if better := [f"{plain(name)} by {number(gain)}" for name, (told, gain) in gains.items() if told == "better"]:
        return f"better than the margin: {few(better)}"
    name, (told, gain) = max(gains.items(), key=lambda item: item[1][1].value or 0)
    worth = "no worthwhile gain was shown" if told == "not shown" else "no other signal is worth having"
    return f"{worth}: {plain(name)} gains {number(gain)} at most"


def _explanations(figures: Figures) -> str:
    members = groups_of(figures["explanations"]).items()
    return " ".join(f"{name}: {map_verdict.sentence(one['verdict'])}" for name, one in members if "verdict" in one)


def _stability(figures: Figures) -> str:
    claims = [f"{unstable_maps(one)} for {name}" for name, one in groups_of(figures["stability"]).items()]
    return f"That unstable maps go with errors is {'; '.join(claims)}."


def unstable_maps(member: Figures) -> str:
    """Whether "unstable maps go with errors" is supported, and the size, of one call where it rests on that alone."""
    claim = member["errors"]["claim"]
    entry = member["errors"][claim["measure"]]
    if reason := entry.estimate("adjusted_error_auroc").absent:
        return f"{claim['answer']} ({reason})"
    alone = {"both": "", "called_positive": ", positive calls alone", "called_negative": ", negative calls alone"}
    size = number(entry.estimate("adjusted_error_auroc"))
    return f"{claim['answer']} with an adjusted AUROC of {size}{alone[entry['rests_on']]}"


def _failures(figures: Figures) -> str:
    own = figures["failures"]["ensemble"]
    if not own["n_errors"]:
        return "The ensemble makes no error on test."
    parts = [f"{one['n']} {name}, {share(one.estimate('share'))}" for name, one in kinds_of(own).items()]
    return f"Of {counted(own['n_errors'], 'errors')} of the ensemble: {'; '.join(parts)}."


def kinds_of(own: Figures) -> dict[str, Figures]:
    """The kinds of failure that one model's errors are of."""
    return {name: own[name] for name in groups_of(own["as_shipped"]) if own["n_errors"] and own[name]["n"]}


def _ensemble(figures: Figures) -> str:
    deferral = figures["deferral"]
    head, *_ = verdict.sentences(figures["verdict"])
    coverage, risk = (share(deferral.estimate(name)) for name in ("coverage", "selective_risk"))
    return (
        f"It decides {coverage} of the cases, {risk} of them wrongly, and hands the rest to a doctor. That costs"
        f" {number(deferral.estimate('failure_cost'))} per case; a doctor who reads every case costs"
        f" {deferral['doctor_reads_all_cost']:.3f}. {head}"
    )


ANSWERS: dict[str, Callable[[Figures], str]] = {  # by stage, each a function of that name
    of_stage.__name__.removeprefix("_"): of_stage
    for of_stage in (
        *(_prepare, _calibration, _site, _baseline, _diversity),
        *(_uncertainty, _explanations, _stability, _failures, _ensemble),
    )
}

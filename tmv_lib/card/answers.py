"""Each question's answer in a sentence or two: what card, viewer and `make answers` show.

A metrics file holds values and enumerations; the words for them stand here.
"""

from collections.abc import Callable
from pathlib import Path

import yaml

from tmv_lib.card.words import NOT_MEASURED, few, number, plain, share
from tmv_lib.deferral import verdict
from tmv_lib.explanations import map_verdict
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
    "site": "calibration differs between source and site, and the site's labels reject the logit as shipped",
    "home": "the source shows the same miscalibration",
    "neither": "neither source nor site rejects the logit as shipped",
    "unclear": "these labels do not say where a miscalibration comes from",
}
CLAIM = {  # "the second ranks better, the first is better calibrated", by `claim` of `diversity`
    "supported": "It ranks better and is calibrated worse, as in the study that this pipeline follows.",
    "contradicted": "The study that this pipeline follows found the opposite.",
    "not_supported": "That it ranks better and is calibrated worse was not shown.",
}


def questions(root: str | Path = ".") -> dict[str, str]:
    """The questions of the pipeline by stage, in its order: the `desc` of dvc.yaml of every stage with an answer."""
    stages = yaml.safe_load((Path(root) / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: stage["desc"] for name, stage in stages.items() if name in ANSWERS}


def answer_of(stage: str, figures: Figures) -> str:
    """The answer of one stage from its figures."""
    return ANSWERS[stage](figures)


def answer(stage: str, root: str | Path = ".") -> str:
    """The answer of one stage. Raises ValueError where its metrics file lacks a figure that the sentence needs."""
    figures = read_metrics(stage, root=root)
    return f"{NOT_MEASURED}: the stage `{stage}` has not run" if figures is None else answer_of(stage, figures)


def members_of(figures: Figures) -> dict[str, Figures]:
    """The members' figures in a section that holds others, too."""
    return {name: figures[name] for name in figures if isinstance(figures[name], Figures) and name != "ensemble"}


def _prepare(figures: Figures) -> str:
    found = figures["prepare"]
    splits = [found["splits"][name] for name in found["splits"]]
    images, patients = (sum(split[key] for split in splits) for key in ("images", "patients"))
    problems = {name: max(found["problems"][name].values()) for name in found["problems"]}
    seen = few([f"{count} {plain(name)}" for name, count in problems.items() if count], most=9)
    return f"{images:,} images of {patients:,} patients. The audit found {seen or 'no problem'}."


def _calibration(figures: Figures) -> str:
    parts = []
    for name, member in members_of(figures["calibration"]).items():
        test = member["after"].get("positive_class_ece_uniform")  # left out with too few cases for its bins
        slope = number(member["after"].estimate("slope"))
        if test is None:
            parts.append(f"{name}: too few cases for a calibration error, slope {slope}")
            continue
        holds = "no sign of miscalibration" if test["p_value_holm"] >= LEVEL else "not calibrated"
        floor = f"a calibrated model stays below {test['noise_floor_p95']:.3f} in 95 of 100 draws"
        parts.append(f"{name}: {holds}, ECE {test['ece']:.3f} ({floor}), slope {slope}")
    return f"{'; '.join(parts)}."


def _site(figures: Figures) -> str:
    site = figures["site"]
    known = site["shift"]["training_patients_at_the_site"]
    warning = f" {known} of its patients stand in train, too: the networks know them." if known else ""
    members = {name: one for name, one in members_of(site).items() if "interaction" in one}
    blame = "; ".join(f"{name}: {BLAME[one['interaction']['blame']]}" for name, one in members.items())
    return f"{LOOKS[site['shift']['name']]} Calibration there: {blame}.{warning}"


def _baseline(figures: Figures) -> str:
    one = figures["baseline"]
    at_half = one["at_half"]
    rates = (f"{name} {share(at_half.estimate(name))}" for name in ("sensitivity", "specificity"))
    return (
        f"{one['member']}: AUROC {number(one.estimate('auroc'))}; at p > 0.5 {' and '.join(rates)}, on {one['n']}"
        f" images of {one['n_patients']} patients."
    )


def _diversity(figures: Figures) -> str:
    both = figures["diversity"]
    pair, together = (both["first"], both["second"]), both["together"]
    only, shared = together["only_first_wrong"] + together["only_second_wrong"], together["double_fault"]
    better = together["ranks_better"]
    ranks = f"{better} ranks better" if better in pair else "neither is shown to rank better"
    return (
        f"{pair[1]} answers otherwise than {pair[0]} on {share(together.estimate('disagreement_rate'))} of the images:"
        f" {only} errors are made by one of them alone, {shared} by both; {ranks}. {CLAIM[both['claim']]}"
    )


def _uncertainty(figures: Figures) -> str:
    parts = []
    for name, member in members_of(figures["uncertainty"]).items():
        surest = member["quadrants"]["confident_error"]["n"]
        margin = number(member["margin"].estimate("adjusted_error_auroc"))
        parts.append(
            f"{name}: the plain margin finds errors with an adjusted AUROC of {margin}, {better_than_margin(member)};"
            f" {surest} of {member['n_errors']} errors are confident ones"
        )
    return f"{'. '.join(parts)}."


def better_than_margin(member: Figures) -> str:
    """What finds errors better than the margin, or how little the largest gain is worth."""
    signals = {name: member[name] for name in member if isinstance(member[name], Figures)}
    gains = {
        name: (one["over_margin"], one.estimate("gain_over_margin"))
        for name, one in signals.items()
        if "gain_over_margin" in one  # not of the margin itself, and of no signal with too few errors
    }
    if not gains:
        return "nothing could be compared with it"
    better = [f"{plain(name)} ({number(gain)})" for name, (verdict, gain) in gains.items() if verdict == "better"]
    if better:
        return f"better is {few(better)}"
    name, (verdict, gain) = max(gains.items(), key=lambda item: item[1][1].value or 0)
    worth = "a worthwhile gain is not shown" if verdict == "not shown" else "no other signal is worth having"
    return f"{worth} (the largest gain: {plain(name)}, {number(gain)})"


def _explanations(figures: Figures) -> str:
    members = {name: one for name, one in members_of(figures["explanations"]).items() if "verdict" in one}
    return " ".join(f"{name}: {map_verdict.sentence(one['verdict'])}" for name, one in members.items())


def _stability(figures: Figures) -> str:
    members = members_of(figures["stability"])
    return f"{'; '.join(f'{name}: {unstable_maps(one)}' for name, one in members.items())}."


def unstable_maps(member: Figures) -> str:
    """Whether errors go with unstable maps, with the size, and the named class where it rests on one alone."""
    claim = member["errors"]["claim"]
    head = f'"unstable maps go with errors" is {claim["answer"]}'
    if "reason" in claim:
        return f"{head} ({claim['reason']})"
    entry = member["errors"][claim["measure"]]
    alone = {"both": "", "called_positive": ", positive calls alone", "called_negative": ", negative calls alone"}
    return f"{head} (adjusted AUROC {number(entry.estimate('adjusted_error_auroc'))}{alone[entry['rests_on']]})"


def _failures(figures: Figures) -> str:
    own = figures["failures"]["ensemble"]
    if not own["n_errors"]:
        return "The ensemble makes no error on test."
    kinds = {name: one for name, one in kinds_of(own).items() if one["n"]}
    parts = [f"{name} {one['n']} ({share(one.estimate('share'))})" for name, one in kinds.items()]
    return f"Of the ensemble's {own['n_errors']} errors: {'; '.join(parts)}."


def kinds_of(own: Figures) -> dict[str, Figures]:
    """The kinds of failure of one model."""
    return {name: own[name] for name in own if isinstance(own[name], Figures) and "accuracy_gain" in own[name]}


def _ensemble(figures: Figures) -> str:
    deferral = figures["deferral"]
    head, *_ = verdict.sentences(figures["verdict"])
    coverage, risk = (share(deferral.estimate(name)) for name in ("coverage", "selective_risk"))
    return (
        f"It decides {coverage} of the cases, {risk} of them wrongly, and hands the rest to a doctor. That costs"
        f" {number(deferral.estimate('failure_cost'))} per case, a doctor who reads every case"
        f" {deferral['doctor_reads_all_cost']:.3f}. {head}"
    )


ANSWERS: dict[str, Callable[[Figures], str]] = {
    "prepare": _prepare,
    "calibration": _calibration,
    "site": _site,
    "baseline": _baseline,
    "diversity": _diversity,
    "uncertainty": _uncertainty,
    "explanations": _explanations,
    "stability": _stability,
    "failures": _failures,
    "ensemble": _ensemble,
}

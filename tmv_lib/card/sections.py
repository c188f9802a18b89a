"""The sections of the trust card, as values: sentences and tables made from the metrics of the stages that have run.

`metrics` holds each stage's `Figures`, or None where it has not run: that alone is "not measured". A figure that a
stage which has run does not have raises ValueError naming file and key.
"""

from collections.abc import Mapping

from tmv_lib.card import policy
from tmv_lib.card.answers import answer_of, audit_of, better_than_margin, kinds_of, unstable_maps
from tmv_lib.card.facts import Facts
from tmv_lib.card.policy import Metrics, Section, not_measured
from tmv_lib.card.words import NOT_MEASURED, counted, few, number, plain, share, signed
from tmv_lib.explanations import map_verdict
from tmv_lib.pipeline.record import Figures

MOST_MEMBERS = 3  # rows of a table: one page holds no more


def sections(metrics: Metrics, facts: Facts, members: Mapping[str, str]) -> list[Section]:
    """All sections, in the order of the card. members: each member's name and what it is, in words."""
    ensemble = metrics["ensemble"]
    rows = list(members)[:MOST_MEMBERS]
    by_policy = [
        policy.answer(ensemble, facts),
        Section("use", "Use it when", "ensemble, a person", policy.use(ensemble, facts)),
        Section("do_not_use", "Do not use it when", "all stages, a person", policy.do_not_use(metrics, facts)),
        policy.happens(ensemble, facts),
        policy.promises(ensemble),
        _reading(ensemble),
    ]
    return [
        *by_policy,
        _calibration(metrics, rows),
        _uncertainty(metrics["uncertainty"], rows),
        _explanations(metrics, rows),
        _failures(metrics),
        policy.deferral(ensemble),
        policy.subgroups(ensemble),
        _place(metrics["site"], facts),
        Section("members", "Members", "train", _members(members)),
        _data(metrics["prepare"]),
        _people(facts),
    ]


def _reading(ensemble: Figures | None) -> Section:
    """Sensitivity, specificity and AUROC, and predictive values at several prevalences."""
    title = "How well it reads"
    if ensemble is None:
        return not_measured("reading", title, "ensemble", "How well it reads")
    found, ways = ensemble["deferral"], ensemble["ensemble"]
    rates = [["", "where it decides", "deciding all"]]
    for name in ("sensitivity", "specificity"):
        rates.append([name, *(share(found.estimate(f"{of}_{name}")) for of in ("decided", "deciding_all"))])
    values = [["positive among all that come", "positive calls right", "negative calls right"]]
    names = ("precision", "negative_predictive_value")
    here = [share(found.estimate(f"decided_{name}")) for name in names]
    values.append([f"{100 * found['n_positive'] / found['n']:.0f} % (test)", *here])
    for prevalence in found["at_prevalence"]:
        one = found["at_prevalence"][prevalence]
        values.append([f"{100 * float(prevalence):g} %", *(share(one.estimate(name)) for name in names)])
    auroc = number(ways["in_use"].estimate("auroc"))
    words = [f"AUROC of what decides ({plain(ways['combine'])}): {auroc}."]
    return Section("reading", title, "ensemble", words, [rates, values])


def _calibration(metrics: Metrics, rows: list[str]) -> Section:
    """Calibration errors of each member before and after, and of the ensemble where it decides, beside their floors."""
    title, stages = "Calibration, before and after", "calibration, ensemble"
    found, ensemble = metrics["calibration"], metrics["ensemble"]
    if found is None:
        return not_measured("calibration", title, stages, "Calibration")
    table = [["", "ECE before", "after", "floor", "in the large, after"]]
    for name in rows:
        before, after = (_ece(found["calibration"][name][phase]) for phase in ("before", "after"))
        in_the_large = signed(found["calibration"][name]["after"].estimate("in_the_large"))
        table.append([name, before["ece"], after["ece"], after["noise_floor_p95"], in_the_large])
    if ensemble is not None:
        decided = ensemble["deferral"]["calibration_of_decided"]["decided"]
        if "noise_floor_p95" in decided:  # not where nothing is decided
            ends = (f"{decided[name]:.3f}" for name in ("ece", "noise_floor_p95"))
            combined = "not applicable because combined after it"
            table.append(["the decided", combined, *ends, signed(decided.estimate("in_the_large"))])
    chosen = [f"{found['calibration'][name]['calibrator']['name']} for {name}" for name in found["calibration"]]
    words = [f"Chosen calibrators: {few(chosen)}."]
    words.append("Floor: 95 of 100 draws of calibrated cases stay below it. In the large: 0 is right.")
    return Section("calibration", title, stages, words, [table])


def _ece(phase: Figures) -> dict[str, str]:
    """The calibration error and its floor; where there are too few cases for bins, why there is none."""
    test = phase.get("positive_class_ece_uniform")
    if test is None:
        reason = number(phase.estimate("positive_class_ece_uniform"))
        return {"ece": reason, "noise_floor_p95": reason}
    return {name: f"{test[name]:.3f}" for name in ("ece", "noise_floor_p95")}


def _uncertainty(found: Figures | None, rows: list[str]) -> Section:
    """Whether doubt finds errors, whether anything beats the plain margin, and whether strange images are noticed."""
    title = "Does doubt find errors?"
    if found is None:
        return not_measured("uncertainty", title, "uncertainty", "Whether doubt finds errors")
    table = [["", "margin, adjusted AUROC", "anything better?", "confident errors", "strange images refused"]]
    for name in rows:
        own = found["uncertainty"][name]
        surest = f"{own['quadrants']['confident_error']['n']} of {own['n_errors']}"
        margin = number(own["margin"].estimate("adjusted_error_auroc"))
        table.append([name, margin, better_than_margin(own), surest, _strange(found["out_of_distribution"])])
    return Section("uncertainty", title, "uncertainty", (), [table])


def _strange(found: Figures) -> str:
    if "absent" in found:
        return str(found["absent"])
    foreign = {plain(kind): found["foreign"][kind].estimate("refused").value for kind in found["foreign"]}
    passed = ", ".join(
        f"{kind} ({100 * part:.0f} %)" for kind, part in foreign.items() if part is not None and part < 1
    )
    return f"all but {passed}" if passed else "all"


def _explanations(metrics: Metrics, rows: list[str]) -> Section:
    """What the maps are good for."""
    title, stages = "Limits of the explanations", "explanations, stability"
    found, stability = metrics["explanations"], metrics["stability"]
    if found is None:
        return not_measured("explanations", title, stages, "Explanations")
    table = [["", "maps", "border hidden, flips", "unstable maps go with errors"]]
    for name in rows:
        maps = found["explanations"][name]
        unstable = NOT_MEASURED if stability is None else unstable_maps(stability["stability"][name])
        flips = share(maps.estimate("border_flip_rate"))
        table.append([name, map_verdict.sentence(maps["verdict"]), flips, unstable])
    words = [
        "A map shows where the network looked, not where disease is. Flips: answers that change once the border of the"
        " image is hidden."
    ]
    return Section("explanations", title, stages, words, [table])


def _failures(metrics: Metrics) -> Section:
    """The kinds of the ensemble's errors, and how many of each deferral catches."""
    title, stages = "Kinds of failure", "failures, ensemble"
    found, ensemble = metrics["failures"], metrics["ensemble"]
    if found is None:
        return not_measured("failures", title, stages, "Kinds of failure")
    own = found["failures"]["ensemble"]
    caught = None if ensemble is None else ensemble["deferral"]["failures"]
    table = [["kind", "of its errors", "deferral catches"]]
    for name, one in kinds_of(own).items():
        known = caught is not None and name in caught  # the policy's decisions put some kinds right altogether
        rate = share(caught[name].estimate("caught")) if known and caught is not None else NOT_MEASURED
        table.append([f"{name} ({one['n']})", share(one.estimate("share")), rate])
    if len(table) == 1:
        table.append(["any", *["not applicable because there is no error"] * 2])
    return Section("failures", title, stages, (), [table])


def _place(site: Figures | None, facts: Facts) -> Section:
    """Whether the model was tried elsewhere, and beside doctors."""
    looks = NOT_MEASURED if site is None else answer_of("site", site)
    words = [
        f"External validation: {facts.text('external_validation')}.",
        f"Test with doctors who use it: {facts.text('human_ai_test')}.",
        f"Does test look like the place it learned from? {looks}",
    ]
    return Section("site", "Another place", "site, a person", words)


def _members(members: Mapping[str, str]) -> list[str]:
    """The members, and how many of them have no row in the tables above."""
    words = [f"{name}: {what}." for name, what in list(members.items())[:MOST_MEMBERS]]
    more = list(members)[MOST_MEMBERS:]
    return [*words, f"{few(more)}: params.yaml, and metrics/ for their figures."] if more else words


def _data(prepare: Figures | None) -> Section:
    """The splits and what the audit of the data found."""
    if prepare is None:
        return not_measured("data", "Data", "prepare", "Data")
    found = prepare["prepare"]
    splits = {name: found["splits"][name] for name in found["splits"]}
    counts = [
        f"{name} has {counted(one['images'], 'images')} of {counted(one['patients'], 'patients')}, {one['positives']:,}"
        " positive"
        for name, one in splits.items()
    ]
    return Section("data", "Data", "prepare", [f"Splits by patient: {'; '.join(counts)}.", audit_of(found)])


def _people(facts: Facts) -> Section:
    """What a person answers for."""
    names = ("users", "population", "reference_standard", "owner", "contact", "monitoring", "ethics", "funding")
    words = [f"{plain(name).capitalize()}: {facts.text(name)}." for name in names]
    return Section("people", "Who answers for it", "a person, card.yaml", words)

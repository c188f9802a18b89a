"""The two questions after the study in words: may it be switched on here, and is it still true?"""

from typing import Any

from tmv_lib.card.words import counted, share
from tmv_lib.deferral import guarantee
from tmv_lib.pipeline.record import Figures
from tmv_lib.statistics.estimate import percent

SAYS = {
    **guarantee.SAYS,
    "missed_of_positives": lambda limit: f"of positive patients at most {percent(limit)} are called negative",
    "false_alarms_of_negatives": lambda limit: f"of negative patients at most {percent(limit)} are called positive",
    "referrals": lambda limit: f"at most {percent(limit)} of the images go to a doctor",
}
ACCEPTANCE = {
    "accept": "Accept: every promise was shown to hold here.",
    "reject": "Reject: do not switch it on here; a promise was shown to be broken.",
    "go_on": "Go on: the cases so far neither confirm nor refute every promise.",
    "not_shown": "Not shown: the protocol's last patient has been read, and not every promise is confirmed; do not"
    " switch it on here by this protocol.",
}
OF_PROMISE = {"accept": "accepted", "reject": "rejected", "go_on": "open", "not_shown": "not shown"}
MONITOR = {
    "stop": "Stop using it",
    "look": "Look into it",
    "carry_on": "Carry on: nothing was shown to be wrong, which is no proof that nothing is",
    "no_labels": "Nobody knows: no case that was due to be read has a label yet",
}
INPUTS = {
    "changed": "inputs no longer look like those calibrated on",
    "no_change_shown": "no change of the inputs was shown",
    "not_compared": "inputs were not compared",
}


def acceptance(figures: Figures) -> list[str]:
    """The answer of an acceptance test, then a sentence per promise and group."""
    found = figures["acceptance"]
    patients = f"{found['n_patients']:,} of at most {counted(found['most_patients'], 'patients')}"
    lines = [f"{ACCEPTANCE[found['answer']]} {patients} have been read."]
    for group, promises in found["groups"].items():
        of = "" if group == "all" else f"{group}: "
        lines += [f"{of}{_promise(name, one)}" for name, one in promises.items()]
    return lines


def _promise(name: str, one: Figures) -> str:
    after = f" after {counted(one['after'], 'patients')}" if "after" in one else ""
    more = f"; without an error {one['fewest']:,} would do" if one["answer"] == "go_on" else ""
    return (
        f"{SAYS[name](one['limit']).capitalize()}: {OF_PROMISE[one['answer']]}{after};"
        f" {share(one.estimate('risk'))} of {counted(one['n'], 'patients')}{more}."
    )


def monitor(figures: Figures) -> list[str]:
    """The answer of the last look, then a sentence per promise, about the inputs, and about what was left out."""
    found = figures["monitor"]
    why = [f"it was promised that {SAYS[name](one['limit'])}, and that is broken" for name, one in _broken(found)]
    why += [INPUTS["changed"]] if found["inputs"]["status"] == "changed" and found["answer"] != "stop" else []
    waits = [name for name, one in found["promises"].items() if one["broken_if_pending_are_wrong"] and one["n_pending"]]
    if not why and found["answer"] == "look":
        why = [f"{counted(len(waits), 'promises')} would be broken if the labels that are missing turned out wrong"]
    head = MONITOR[found["answer"]] + (f": {'; '.join(why)}" if why else "")
    seen = f"Last looked at {counted(found['n_images'], 'images')} of {counted(found['n_patients'], 'patients')}."
    lines = [f"{head}. {seen}", _stop_rules(found), *(_watched(name, one) for name, one in found["promises"].items())]
    inputs = found["inputs"]
    lines.append(f"{INPUTS[inputs['status']].capitalize()}{_since(inputs, 'changed')}.")
    if found["reported"]["n_images"]:
        lines.append(
            "Kept apart, because nobody was due to read them: labels of"
            f" {counted(found['reported']['n_images'], 'images')}, {found['reported']['n_wrong']} against the system."
        )
    return lines + _update(found["update"])


def warning(figures: Figures | None) -> str:
    """What must stand on top of the card; "" where nothing was looked at, or nothing speaks for stopping."""
    return monitor(figures)[0] if figures is not None and figures["monitor"]["answer"] == "stop" else ""


def _stop_rules(found: Figures) -> str:
    rules = [SAYS[name](one["limit"]) for name, one in found["promises"].items() if name != "referrals"]
    return f"Stop using it once one of these is shown to be broken: {'; '.join(rules)}."


def _broken(found: Figures) -> list[tuple[str, Figures]]:
    return [(name, one) for name, one in found["promises"].items() if one["status"] == "broken"]


def _watched(name: str, one: Figures) -> str:
    state = "broken" if one["status"] == "broken" else "not shown to be broken"
    words = f"{SAYS[name](one['limit']).capitalize()}: {state}{_since(one, 'broken')}"
    if name == "referrals":
        return f"{words}; {share(one.estimate('risk'))}."
    known = f"{one['n_labelled']:,} of {counted(one['n'], 'patients')} due have a label"
    rest = f", {share(one.estimate('risk'))} wrong" if one["n_labelled"] else ""
    if one["status"] == "broken" or not one["n_pending"]:
        return f"{words}; {known}{rest}."
    would = "that would break it" if one["broken_if_pending_are_wrong"] else "even that would not break it"
    return f"{words}; {known}{rest}. If the {one['n_pending']:,} pending were all wrong, {would}."


def _since(one: Figures, event: str) -> str:
    if f"{event}_after" not in one:
        return ""
    return f" since {one[f'{event}_at']} (patient {one[f'{event}_after']:,} of those that count)"


def _update(update: Figures) -> list[str]:
    if update["choice"] in ("keep", "too_few_labels"):
        return []
    change = f"intercept {update['intercept']:+.2f}, slope {update['slope']:.2f}"
    return [
        f"The labels of {counted(update['n_patients'], 'patients')} support another calibration ({change}). Nothing is"
        " changed by itself: a person runs it as an experiment, and the new policy starts anew."
    ]


AFTER: dict[str, tuple[str, str, Any]] = {  # question, command and what answers it, by metrics file
    "acceptance": ("May it be switched on here?", "make accept", acceptance),
    "monitor": ("Is it still true?", "make monitor", monitor),
}

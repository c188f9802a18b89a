"""What is said of one case: the system's answer, how often such answers come true, the truth, and what to do next."""

import pandas as pd

from demo.cases import Collection, chance, text
from demo.disk import figure
from demo.page import Section
from tmv_lib.deferral.verdict import DO_NOT_USE, USE

NEAR = 0.05  # probabilities this near count as such cases
PLANTED = {  # what the phantom did to a case, by `cause`
    "ambiguous": ", drawn so that either answer can be defended",
    "mislabelled": "; its label was flipped on purpose",
    "blind": ", of a kind that was kept out of training",
    "spurious": ", with a marker that contradicts it",
}
RARE = 0.01  # share of the training images below which a finding is hardly taught
DEFERRED = "No answer: read as if there were no system. This is not a normal result."


def reveal(cases: Collection, number: int) -> Section:
    """What is shown after the reader's own answer. Of a deferred case: neither prediction, nor truth, nor map."""
    case = cases.table.loc[number]
    if case["deferred"]:
        lines = [f"**{DEFERRED}**", f"The reason: {case['reason']}.", next_step(cases, case)]
        return Section("The system gives no answer", lines)
    lines = [
        answer(cases, float(case["y_prob"]), int(case["decision"])),
        similar(cases, float(case["y_prob"]), case["patient_id"]),
        _label(cases, case),
        *_sure_and_wrong(cases, case),
        *_planted(cases, case),
        next_step(cases, case),
    ]
    return Section("The system's answer", lines)


def withheld(cases: Collection, number: int) -> Section:
    """What a deferred case would have been told, for a reader who has said what it is. Raises ValueError if decided."""
    case = cases.table.loc[number]
    if not case["deferred"]:
        raise ValueError(f"case {number} is decided: nothing was withheld")
    lines = [
        f"Had it decided: {answer(cases, float(case['y_prob']), int(case['decision']))}",
        _label(cases, case),
        *_planted(cases, case),
    ]
    return Section("What was withheld", lines)


def answer(cases: Collection, y_prob: float, decision: int) -> str:
    """The system's answer and its probability in one breath: what is flagged need not be likely."""
    positive, told = cases.names.positive, f"estimated chance {chance(y_prob)}."
    if (y_prob > 0.5) == bool(decision):
        return f"**{cases.names.called(decision).capitalize()}**: {told}"
    prices = figure(cases.disk.read("params.yaml"), "deferral.cost")
    fn, fp = (prices[name] for name in ("false_negative", "false_positive"))  # equal ones flag what is likely
    above = f"from {100 * fp / (fn + fp):.0f} % because"
    if decision:
        return f"**Flagged as possible {positive}**: {told} It flags {above} a miss is priced at {_times(fn / fp)}."
    why = f"a false alarm is priced at {_times(fp / fn, 'miss', 'misses')}"
    return f"**Not flagged as {positive}**: {told} It flags only {above} {why}."


def _times(ratio: float, one: str = "false alarm", more: str = "false alarms") -> str:
    """
    >>> _times(5), _times(1.5), _times(20)
    ('five false alarms', '1.5 false alarms', '20 false alarms')
    """
    words: dict[float, str] = dict(
        enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=1)
    )
    return f"{words.get(ratio, f'{ratio:.3g}')} {one if ratio == 1 else more}"


def similar(cases: Collection, y_prob: float, patient_id: str = "") -> str:
    """How often the chance came true among test images of other patients that got a similar one."""
    table = cases.table
    near = ((table["y_prob"] - y_prob).abs() <= NEAR) & (table["patient_id"] != patient_id)
    if not near.any():
        return f"No test image of another patient has a chance within {100 * NEAR:.0f} points of it."
    had = int(table.loc[near, "y_true"].sum())
    return (
        f"Of {near.sum()} similar test images of other patients, {had} had {cases.names.positive} (similar: a chance"
        f" within {100 * NEAR:.0f} points)."
    )


def _label(cases: Collection, case: pd.Series) -> str:
    wrong = case["decision"] != case["y_true"]
    verdict = "the answer is right" if not wrong else "a missed case" if case["y_true"] == 1 else "a false alarm"
    return f"Reference label: **{cases.names.called(case['y_true'])}**, {verdict}."


def _sure_and_wrong(cases: Collection, case: pd.Series) -> list[str]:
    """Of a wrong answer: how often the system is wrong when it is as sure."""
    if not case["wrong"]:
        return []
    as_sure = cases.table[~cases.table["deferred"] & (cases.table["certainty"] >= case["certainty"])]
    return [
        f"It was sure, {case['certainty']:.2f} of 1, and wrong, as on {int(as_sure['wrong'].sum())} of the"
        f" {len(as_sure)} test images on which it is as sure or surer."
    ]


def _planted(cases: Collection, case: pd.Series) -> list[str]:
    """What the phantom's maker knows of a case, and whether the networks could have learned it."""
    if "y_clean" not in case:
        return []
    finding, cause = text(case, "finding") or "none", PLANTED.get(case["cause"], "")
    lines = [f"Planted in this synthetic image: {'nothing' if finding == 'none' else finding}{cause}."]
    train = cases.everything[cases.everything["split"] == "train"]
    known = int((train["finding"] == finding).sum())
    if finding != "none" and known < RARE * len(train):
        lines.append(f"{known or 'None'} of {len(train):,} training images show this finding: nobody taught it that.")
    return lines


def next_step(cases: Collection, case: pd.Series) -> str:
    """What to do after this answer, as the verdict on the system has it."""
    if case["deferred"] and case["out_of_distribution"]:
        return (
            "**Next**: make sure that this is the kind of image that is meant, since it looks unlike the training"
            " images; then read it as if there were no system."
        )
    if case["deferred"]:
        return "**Next**: read it yourself, with no hint from the system either way."
    found = figure(cases.disk.read("metrics/ensemble.json"), "verdict.answer")
    if found == USE:
        step = "at these prices this answer may stand without a doctor's reading; where you disagree, yours counts."
    elif found == DO_NOT_USE:
        step = "go by your own reading; the verdict on this system is not to use it."
    else:
        step = "go by your own reading; it was not shown that this system's answers may stand alone."
    return f"**Next**: {step}" + ("" if case["decision"] else " It cannot rule out findings that it was never taught.")

"""The reader against the system, on the decided cases of the random queue."""

from collections.abc import Iterable
from typing import Literal

from demo.cases import Collection

Answer = Literal["yes", "no", "cannot tell"]


def tally(cases: Collection, answers: Iterable[tuple[int, Answer]]) -> str:
    """What the reader answered before each reveal, (number, answer), against the labels, in a sentence."""
    scored, reader_right, model_right, cannot_tell, deferred = 0, 0, 0, 0, 0
    for number, answer in answers:
        case = cases.table.loc[number]
        if case["deferred"]:
            deferred += 1
        elif answer == "cannot tell":
            cannot_tell += 1
        else:
            scored += 1
            reader_right += (answer == "yes") == bool(case["y_true"])
            model_right += not case["wrong"]
    if not scored + cannot_tell + deferred:
        return "You against the model: nothing answered yet."
    said = f"You against the model: you were right in {reader_right} of {scored}, it in {model_right} of {scored}."
    if cannot_tell:
        said += f" You could not tell in {cannot_tell} more."
    return f"{said} It left {deferred} to you, which nobody scores." if deferred else said

"""The reader against the system, on the decided cases of the random queue."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from demo.cases import Collection

Answer = Literal["yes", "no", "cannot tell"]


class Tally(NamedTuple):
    """Decided cases of the random queue that the reader answered before the reveal."""

    n: int
    reader_right: int
    model_right: int
    cannot_tell: int
    deferred: int

    @property
    def words(self) -> str:
        """The tally in a sentence."""
        if not self.n + self.cannot_tell + self.deferred:
            return "You against the model: nothing answered yet."
        said = (
            f"You against the model: you were right in {self.reader_right} of {self.n},"
            f" it in {self.model_right} of {self.n}."
        )
        if self.cannot_tell:
            said += f" You could not tell in {self.cannot_tell} more."
        if self.deferred:
            said += f" It left {self.deferred} to you, which nobody scores."
        return said


def tally(cases: Collection, answers: Iterable[tuple[int, Answer]]) -> Tally:
    """Count what the reader answered before each reveal, (number, answer), against the labels."""
    counted = dict.fromkeys(("n", "reader_right", "model_right", "cannot_tell", "deferred"), 0)
    for number, answer in answers:
        case = cases.table.loc[number]
        if case["deferred"]:
            counted["deferred"] += 1
        elif answer == "cannot tell":
            counted["cannot_tell"] += 1
        else:
            counted["n"] += 1
            counted["reader_right"] += int((answer == "yes") == bool(case["y_true"]))
            counted["model_right"] += int(not case["wrong"])
    return Tally(**counted)

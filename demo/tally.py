"""The reader's own readings: kept in memory or in a CSV file, against the system, and on the cases that it hands on."""

import os
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from demo.cases import Collection
from tmv_lib.pipeline.files import AS_WRITTEN, as_headed
from tmv_lib.readers.readings import VIEWER
from tmv_lib.statistics.estimate import Estimate
from tmv_lib.statistics.tests import wilson_interval

ANSWERS = ("yes", "no", "cannot tell", "none")  # positive or not; "none": revealed without an answer


class Reading(NamedTuple):
    """An answer, one of `ANSWERS`; blind: whether nothing was known of the case beforehand."""

    answer: str
    blind: bool

    @property
    def counts(self) -> bool:
        return self.blind and self.answer != "none"


class Readings:
    """What one reader has said, by `image_id`, once each; with a path also in that CSV file, a row per case.

    Raises ValueError naming the file, and the row, where it is no such file.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.known = path, set[str]()  # image_ids that the reader met knowing something of them
        self.by_case: dict[str, Reading] = {}
        if path is not None and path.exists():
            self.by_case = _read(path)

    def commit(self, image_id: str, answer: str, *, blind: bool) -> None:
        """Keep an answer. The first one stays: whoever has seen the reveal can no longer read the case."""
        if image_id in self.by_case:
            return
        if self.path is not None:
            row = pd.DataFrame([(image_id, answer, "yes" if blind else "no")], columns=VIEWER)
            with self.path.open("a", encoding="utf-8", newline="") as file:
                row.to_csv(file, header=file.tell() == 0, index=False)
                file.flush()
                os.fsync(file.fileno())
        self.by_case[image_id] = Reading(answer, blind)


def _read(path: Path) -> dict[str, Reading]:
    try:
        table = as_headed(pd.read_csv(path, **AS_WRITTEN | {"dtype": str, "keep_default_na": False}))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no CSV file of readings ({error})") from None
    if list(table) != VIEWER:
        raise ValueError(f"{path}: the columns are {', '.join(table)}; readings have {', '.join(VIEWER)}")
    for row, (_, answer, blind) in enumerate(table.itertuples(index=False), start=2):
        if answer not in ANSWERS or blind not in ("yes", "no"):
            raise ValueError(
                f"{path}: row {row} has answer {answer!r}, blind {blind!r}; answers are {', '.join(ANSWERS)}, blind is"
                " yes or no"
            )
    return {image_id: Reading(answer, blind == "yes") for image_id, answer, blind in table.itertuples(index=False)}


def _counted(cases: Collection, readings: Readings) -> pd.DataFrame:
    """The cases of this run that the reader answered blind, with the answer."""
    told = {image_id: one.answer for image_id, one in readings.by_case.items() if one.counts}
    table = cases.table[cases.table["image_id"].isin(told)]
    return table.assign(told=table["image_id"].map(told))


def tally(cases: Collection, readings: Readings) -> str:
    """What the reader answered before each reveal against the labels, in a sentence or two."""
    counted = _counted(cases, readings)
    if counted.empty:
        return "You against the model: nothing answered yet."
    sure = counted[counted["told"] != "cannot tell"]
    right = (sure["told"] == "yes") == (sure["y_true"] == 1)
    decided = ~sure["deferred"]
    words = []
    if n := decided.sum():
        words.append(f"you were right in {right[decided].sum()} of {n}, it in {(~sure['wrong'])[decided].sum()} of {n}")
    if unsure := len(counted) - len(sure):
        words.append(f"you could not tell in {unsure}")
    if handed := (~decided).sum():
        words.append(f"it left {handed} to you, of which you were right in {right[~decided].sum()}")
    return f"You against the model: {'; '.join(words)}."


def on_deferred(cases: Collection, readings: Readings) -> dict[str, Estimate]:
    """Sensitivity and specificity of the reader on the deferred cases, which `deferral.reader` assumes.

    Wilson intervals over cases, as if each were of another patient; "cannot tell" finds nothing and clears nothing.
    """
    counted = _counted(cases, readings)
    handed = counted[counted["deferred"]]
    found = {}
    for name, label, word in (("sensitivity", 1, "yes"), ("specificity", 0, "no")):
        own = handed[handed["y_true"] == label]
        if own.empty:
            found[name] = Estimate(absent=f"no deferred {'positive' if label else 'negative'} was read")
        else:
            right = int((own["told"] == word).sum())
            low, high = wilson_interval(right, len(own))
            found[name] = Estimate(right / len(own), float(low), float(high))
    return found

"""The plan of a reader study: which cases, and in which order and arm each reader gets them."""

from hashlib import sha256
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field, StringConstraints, model_validator

from tmv_lib.pipeline.params import Params, Seed

Reader = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,40}$")]  # it names a file
Arm = Literal["alone", "system", "deferral"]


class StudyParams(Params):
    """The section `study` of plan.yaml.

    design: `crossover`, every reader reads every case in every arm, in as many sessions as there are arms; `split`,
    every reader reads every case once. washout_days: from the end of a session to the next. positive, negative: cases
    of the test split, of so many patients. folder: where the readings go, a file per reader.
    """

    seed: Seed
    readers: Annotated[list[Reader], Field(min_length=1)]
    arms: Annotated[list[Arm], Field(min_length=1)]
    design: Literal["crossover", "split"]
    washout_days: Annotated[int, Field(ge=0, le=365)]
    positive: Annotated[int, Field(ge=2)]
    negative: Annotated[int, Field(ge=2)]
    folder: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def no_two_alike(self) -> "StudyParams":
        for name, listed in (("readers", self.readers), ("arms", self.arms)):
            if len(set(listed)) < len(listed):
                raise ValueError(f"{name} names one of them twice")
        if self.design == "split" and self.washout_days:
            raise ValueError("washout_days must be 0 in a split design, which has one session")
        return self


def draw_cases(study: StudyParams, test: pd.DataFrame) -> pd.DataFrame:
    """The cases of the study, drawn by lot: one image per patient, so many of each class.

    test: `image_id`, `patient_id`, `y_true` of the test split. Raises ValueError where it holds too few patients.
    """
    rng = np.random.default_rng(study.seed)
    one_each = test.iloc[rng.permutation(len(test))].drop_duplicates("patient_id")
    drawn = []
    for label, name, wanted in ((1, "positive", study.positive), (0, "negative", study.negative)):
        there = one_each[one_each["y_true"] == label]
        if len(there) < wanted:
            raise ValueError(f"study.{name} is {wanted}: the test split has {len(there)} such patients")
        drawn.append(there[:wanted])
    return pd.concat(drawn, ignore_index=True)


def order_of(study: StudyParams, reader: str, cases: pd.DataFrame) -> pd.DataFrame:
    """What a reader gets, in order: `session` from 1, `arm`, `case`, `position` from 1, by lot from seed and name.

    The cases of each class are dealt into as many groups as there are arms. In session s group g is read in arm
    g + s, so that arms are mixed within a session, each holds its share of both classes, and, in a crossover, no arm
    comes first more often than another. cases: as `draw_cases` gives them.
    """
    name = int.from_bytes(sha256(reader.encode()).digest()[:8], "big")
    rng = np.random.default_rng([study.seed, name])
    n_arms, arms = len(study.arms), rng.permutation(study.arms)
    group = np.empty(len(cases), dtype=int)
    for label in (0, 1):
        own = rng.permutation(np.flatnonzero(cases["y_true"] == label))
        group[own] = (np.arange(own.size) + label) % n_arms  # what is left over goes to another group
    sessions = []
    for session in range(n_arms if study.design == "crossover" else 1):
        arm = arms[(group + session) % n_arms]
        table = pd.DataFrame({"session": session + 1, "arm": arm, "case": cases["image_id"].to_numpy()})
        sessions.append(table.iloc[rng.permutation(len(cases))])
    whole = pd.concat(sessions, ignore_index=True)
    return whole.assign(position=np.arange(1, len(whole) + 1))


def steps_of(order: pd.DataFrame) -> list[tuple[int, str]]:
    """The readings that an order asks for: the row of the order, and the step. The arm `alone` has no first step."""
    return [
        (row, step)
        for row, arm in enumerate(order["arm"])
        for step in (("final",) if arm == "alone" else ("first", "final"))
    ]


def readings_done(path: str, order: pd.DataFrame, done: pd.DataFrame) -> int:
    """How many readings of an order are done.

    done: the readings in the file `path`. Raises ValueError naming the row that the plan would not have there, because
    plan or run have changed since.
    """
    steps = steps_of(order)
    for place, (number, told) in enumerate(done.iterrows()):
        asked = order.iloc[steps[place][0]] if place < len(steps) else None
        if asked is None or (told["case"], told["arm"], told["step"]) != (asked["case"], asked["arm"], steps[place][1]):
            raise ValueError(
                f"{path}: row {number} is not the reading that the plan has there: plan or run have changed since;"
                " name another study.folder"
            )
    return len(done)

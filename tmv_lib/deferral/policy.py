"""A policy as `ensemble` fitted it, in numbers that lie on disk, and what it says of cases.

Whoever has the calibrated logits of the members and the signals of a case gets from here what the stage itself says of
it: probability, certainty, decision, referral and its reason.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from tmv_lib.deferral import combination, costs, doubt
from tmv_lib.pipeline.files import whole

OUT_OF_DISTRIBUTION = "unlike the training images"


class FittedPolicy(NamedTuple):
    """What a policy is made of.

    members: names, in the order of their logits. calibration: `shipped` or `site`, which calibrated logits decide.
    combine: one of `combination.WAYS`. stack: intercept and a weight per member, of stacking. cost_fn, cost_fp: prices
    of the errors. threshold: certainty that a decision must reach, in [0, 1]. weights: of doubt, by kind; empty where
    the margin alone decides. ranges: median and largest value on validation of each signal that has a weight.
    """

    members: list[str]
    calibration: str
    combine: str
    stack: list[float]
    cost_fn: float
    cost_fp: float
    threshold: float
    weights: dict[str, float]
    ranges: dict[str, tuple[float, float]]

    @property
    def prices(self) -> dict[str, float]:
        return {"cost_fn": self.cost_fn, "cost_fp": self.cost_fp}


def write_policy(path: str | Path, policy: FittedPolicy) -> None:
    """Write it as JSON, every number in full."""
    with whole(path) as temporary:
        temporary.write_text(json.dumps(policy._asdict(), indent=2) + "\n", encoding="utf-8")


def read_policy(path: str | Path) -> FittedPolicy:
    """Read what `write_policy` wrote. Raises ValueError naming the file where it is not there or no policy."""
    try:
        return FittedPolicy(**json.loads(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; `make repro` trains the members and fits the policy") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: no policy of this version ({error}); `make repro` makes it anew") from None


def probability(policy: FittedPolicy, logits: pd.DataFrame) -> np.ndarray:
    """The ensemble's probability (n,) from calibrated logits, a column per member."""
    return combination.combine(logits[policy.members], way=policy.combine, stack=policy.stack)


def decide(
    y_prob: ArrayLike,
    certainty: ArrayLike,
    out_of_distribution: ArrayLike,
    *,
    threshold: float,
    prices: dict[str, float],
) -> pd.DataFrame:
    """Per case `y_prob`, `certainty`, the cheapest `decision`, `out_of_distribution`, and whether it is `deferred`.

    A case out of distribution is deferred at any threshold: its certainty is `deferral.NEVER`.
    """
    foreign = np.asarray(out_of_distribution, dtype=bool)
    certain = np.where(foreign, costs.NEVER, certainty)
    return pd.DataFrame(
        {
            "y_prob": y_prob,
            "certainty": certain,
            "decision": costs.cheapest_decision(y_prob, **prices),
            "out_of_distribution": foreign,
            "deferred": costs.decide(certain, threshold=threshold),
        }
    )


def apply(
    policy: FittedPolicy, logits: pd.DataFrame, signals: pd.DataFrame, out_of_distribution: ArrayLike
) -> pd.DataFrame:
    """What the policy says of cases: the columns of `decide`, and `reason` ("" where it decides), rows as in `logits`.

    logits: calibrated, a column per member, (n, members). signals: the columns that `policy.ranges` names, not a number
    where one could not be measured. out_of_distribution: (n,) boolean.
    """
    y_prob = probability(policy, logits)
    margin = costs.certainty(y_prob, **policy.prices)
    doubted = doubt.doubts(reliance(signals, decision=costs.cheapest_decision(y_prob, **policy.prices)), policy.ranges)
    certainty = doubt.lowered(y_prob, doubted, policy.weights, **policy.prices)
    table = decide(y_prob, certainty, out_of_distribution, threshold=policy.threshold, prices=policy.prices)
    doubtful = doubt.reasons(doubted, policy.weights, close=margin < policy.threshold)
    reason = np.where(table["out_of_distribution"], OUT_OF_DISTRIBUTION, doubtful)
    return table.assign(reason=np.where(table["deferred"], reason, "")).set_axis(logits.index)


def reliance(signals: pd.DataFrame, *, decision: ArrayLike) -> pd.DataFrame:
    """The signals with `border_reliance_<member>` in place of `border_effect_<member>`.

    An effect is how much the logit falls when the image's border is hidden; an answer relies on the border where that
    speaks against it: the effect where it is positive (`decision` (n,) 1), minus the effect where it is negative.
    """
    sign = np.where(np.asarray(decision) == 1, 1.0, -1.0)
    effects = [name for name in signals if str(name).startswith("border_effect_")]
    named = {name: str(name).replace("effect", "reliance") for name in effects}
    return signals.assign(**{name: signals[name] * sign for name in effects}).rename(columns=named)

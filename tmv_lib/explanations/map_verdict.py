"""Do a network's maps deserve a look? The answer from the checks of `explanations`, in values; and the sentence made
of them, which overlays, card and viewer show.
"""

from collections.abc import Mapping
from typing import Any

from tmv_lib.statistics.estimate import Estimate

# Why maps are not usable, in words.
REASONS = {
    "dependence_undecided": "it is undecided whether they depend on what was learned",
    "no_dependence": "they do not depend on what was learned",
    "deletion": "deletion is no better than random",
    "insertion": "insertion is no better than random",
}


def judge(untrained: Mapping[str, Any], deletion: Estimate, insertion: Estimate) -> dict[str, Any]:
    """The verdict on a network's maps by the level `untrained` of the sanity check, and areas minus those at random.

    `usable`: the level passes, and both areas beat the random order by their whole 95 % intervals; an absent interval
    beats nothing. `because_of`: the keys of `REASONS` that forbid it, a space between.
    """
    passes = untrained.get("passes", "undecided")
    forbids = {
        "dependence_undecided": passes == "undecided",
        "no_dependence": passes not in ("yes", "undecided"),
        "deletion": not (deletion.high is not None and deletion.high < 0),
        "insertion": not (insertion.low is not None and insertion.low > 0),
    }
    reasons = [name for name, holds in forbids.items() if holds]
    return {"usable": not reasons, "because_of": " ".join(reasons)}


def sentence(verdict: Mapping[str, Any]) -> str:
    """The verdict in words.

    >>> sentence({"usable": False, "because_of": "deletion insertion"})
    'Do not use these maps: deletion is no better than random, and insertion is no better than random.'
    """
    if verdict["usable"]:
        return "These maps deserve a look: they depend on what was learned, and the answer on what they rank first."
    return f"Do not use these maps: {', and '.join(REASONS[name] for name in verdict['because_of'].split())}."

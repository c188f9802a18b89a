"""What each kind of failure needs, as a change of `params.yaml` and what people must have done before it."""

from copy import deepcopy
from typing import Any

from tmv_lib.deferral.costs import Prices

KINDS = {  # as a repair is called, and the taxonomy's kind
    "spurious": "spurious feature",
    "noise": "annotation noise",
    "blindness": "model blindness",
    "ambiguity": "clinical ambiguity",
}
COLLECTED = "collected.csv"  # below prepare.root
MATERIAL = {
    "noise": "two readings or more of each case in data/failures/queues/relabel_train.csv",
    "ambiguity": "several readings of each case in data/failures/queues/second_reader_train.csv",
    "blindness": f"a list {COLLECTED} below prepare.root of cases like those in data/failures/queues/collect.csv",
}


def changes(kind: str, params: dict[str, Any], prices: Prices) -> dict[str, Any]:
    """The keys of `params.yaml`, dotted, that repair a kind, and their values.

    spurious: every training image gets the border of another one, as wide as `explanations` hides it. noise: labels
    are learned as two readers corrected them. ambiguity: the share of positive readings is learned, and two doctors
    read what is deferred. blindness: the collected cases are trained on.
    """
    if kind == "spurious":
        return {"train.augmentation.border": params["explanations"]["border"]}
    if kind == "noise":
        return {"train.labels": "corrected"}
    if kind == "blindness":
        return {"prepare.collected": COLLECTED}
    two = second_reader(prices).named()
    changed = {f"deferral.{group}.{name}": value for group, of in two.items() for name, value in of.items()}
    own = prices.named()
    kept = {f"deferral.{group}.{name}": value for group, of in own.items() for name, value in of.items()}
    return {"train.labels": "soft"} | {key: value for key, value in changed.items() if value != kept[key]}


def changed(params: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The parameters with these dotted keys at other values."""
    new = deepcopy(params)
    for key, value in change.items():
        *sections, name = key.split(".")
        section = new
        for part in sections:
            section = section[part]
        section[name] = value
    return new


def second_reader(prices: Prices) -> Prices:
    """Prices where two doctors read what is deferred, and a third where they differ.

    With sensitivity s each, who err independently, two of three are right with s^2 (3 - 2 s); specificity alike. A
    review is priced twice, and once more as often as they differ, the mean over the classes of 2 s (1 - s). Doctors who
    do not err need no second: the prices stay.

    >>> two = second_reader(Prices(5, 1, 0.25, sensitivity=0.8, specificity=0.9))
    >>> round(two.sensitivity, 3), round(two.specificity, 3), round(two.review, 4)
    (0.896, 0.972, 0.5625)
    """
    alone = prices.sensitivity, prices.specificity
    if alone == (1.0, 1.0):
        return prices
    sensitivity, specificity = (right**2 * (3 - 2 * right) for right in alone)
    differ = sum(2 * right * (1 - right) for right in alone) / 2
    review = prices.review * (2 + differ)
    return prices._replace(review=review, sensitivity=sensitivity, specificity=specificity)

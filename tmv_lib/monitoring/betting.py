"""Evidence that may be looked at after every patient: the wealth of bets against a promise.

Against "the risk is at most r", a bet lambda in (0, 1/r) multiplies its stake by 1 + lambda (x_i - r) at each loss x_i
in [0, 1]; against "the risk is at least r", a bet in (0, 1/(1 - r)) by 1 + lambda (r - x_i). Where the hypothesis is
true no strategy gains on average, so that the wealth W ever reaches 1/alpha with probability at most alpha, however
often it is looked at (Ville 1939). Sources: Waudby-Smith & Ramdas 2024, Estimating means of bounded random variables by
betting; Podkopaev & Ramdas 2022, Tracking the risk of a deployed model.

Two departures. A patient who is read with known probability pi enters, when read, with 1 + lambda v (x_i - r),
v = pi_min / pi <= 1: the expectation is pi_min lambda (E[x_i] - r) over all patients, read or not, as if the loss had
been weighted by 1 / pi, but the factor keeps its bound and nobody who is not read costs a stake. And a share of the
stake waits for later: without it a year of good work loses what a bad month would have to win back first.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from tmv_lib.statistics.arrays import FloatArray

Against = Literal["at_most", "at_least"]

BETS = 25
# A bet c / r is best where the risk is r + c (1 - r), a bet c / (1 - r) where it is (1 - c) r: alarms are about risks
# of some times r, acceptance about all of them below r.
LARGEST = {"at_most": 1 / 3, "at_least": 1.0}
WAITING, APART = 0.05, 50  # share of the stake that waits; patients from one opening of new bets to the next
HALVINGS = 30  # of an end of a confidence interval: to 1e-9


def wealth(
    loss: ArrayLike, limit: float, *, against: Against, weight: ArrayLike = 1.0, anew: bool = False, every: int = 1
) -> FloatArray:
    """Natural logarithm of the wealth after each patient, (n,) or (streams, n), at a stake of 1 before the first.

    loss: in [0, 1], one per patient in the order of the cases, (n,) or (streams, n). limit: r, in (0, 1). against:
    the hypothesis, `at_most` r (its fall is an alarm) or `at_least` r (its fall is an acceptance). weight: v in (0, 1].
    anew: whether bets are also opened at every 50th patient, for alarms about a change. every: report after each so
    many patients alone, n / every of them, rounded down; the last patients of a stream wait for their block.
    """
    x, v = np.asarray(loss, dtype=float), np.asarray(weight, dtype=float)
    _check(x, v, limit)
    n = x.shape[-1] // every * every
    edge, weighted = _edge(x[..., :n], limit, against) * np.broadcast_to(v, x.shape)[..., :n], []
    starts = np.arange(0, n, APART * every) // every if anew else np.zeros(1, dtype=int)
    opened = np.searchsorted(starts, np.arange(n // every), side="right")  # how many times bets were opened
    b = np.arange(len(starts))
    share = np.where(b == 0, 1 - WAITING if anew else 1.0, WAITING / np.maximum(b * (b + 1.0), 1))
    for bet in _bets(limit, against):
        after = np.log1p(bet * edge).reshape(*x.shape[:-1], -1, every).sum(axis=-1).cumsum(axis=-1)
        before = np.concatenate([np.zeros((*after.shape[:-1], 1)), after], axis=-1)[..., starts]
        stakes = np.logaddexp.accumulate(np.log(share) - before, axis=-1)
        weighted.append(after + stakes[..., opened - 1] - np.log(BETS))
    waiting = np.log(WAITING / opened) if anew else np.full(len(opened), -np.inf)
    total = np.broadcast_to(waiting, weighted[0].shape)
    for part in weighted:
        total = np.logaddexp(total, part)
    return total


def reached(log_wealth: FloatArray, alpha: float) -> int | None:
    """How many patients it took until the wealth was 1 / alpha for the first time; None where it never was."""
    there = log_wealth >= -np.log(alpha)
    return int(there.argmax()) + 1 if there.any() else None


def fewest(limit: float, alpha: float) -> int:
    """How many patients without an error it takes to reject that the risk is at least `limit`.

    >>> fewest(0.05, 0.05)
    89
    """
    bets = np.log1p(_bets(limit, "at_least") * limit)
    low, high = 0, 1
    while np.exp(high * bets).mean() < 1 / alpha:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if np.exp(middle * bets).mean() >= 1 / alpha else (middle, high)
    return high


def confidence_interval(loss: ArrayLike, alpha: float, *, weight: ArrayLike = 1.0) -> tuple[float, float]:
    """The risks that the bets of neither side reject at alpha / 2 after these losses (n,), as (low, high).

    Taken after any patients, as often as one likes, these intervals form a confidence sequence: all of them hold the
    risk with probability 1 - alpha, if the risk does not change. (0, 1) without a loss.
    """
    x, v = np.asarray(loss, dtype=float), np.asarray(weight, dtype=float)
    values, counts = np.unique(x + 1j * v, return_counts=True)  # few, which all stakes are computed from
    pairs = np.stack([values.real, values.imag])
    if not x.size:
        return 0.0, 1.0
    mean = float(np.average(pairs[0], weights=pairs[1] * counts))

    def rejected(limit: float, against: Against) -> bool:
        edge = _edge(pairs[0], limit, against) * pairs[1]
        of_bets = np.log1p(_bets(limit, against)[:, None] * edge) @ counts
        return bool(np.logaddexp.reduce(of_bets) - np.log(BETS) >= np.log(2 / alpha))

    ends, sides = [], zip(get_args(Against), (0.0, 1.0), strict=True)
    for against, outer in sides:
        inner = mean
        for _ in range(HALVINGS if inner != outer else 0):
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if rejected(middle, against) else (middle, outer)
        ends.append(outer)
    return ends[0], ends[1]


def _bets(limit: float, against: Against) -> FloatArray:
    """The grid of lambda, (BETS,)."""
    largest = 1 / limit if against == "at_most" else 1 / (1 - limit)
    return LARGEST[against] * largest * np.arange(1, BETS + 1) / (BETS + 1)


def _edge(x: FloatArray, limit: float, against: Against) -> FloatArray:
    return x - limit if against == "at_most" else limit - x


def _check(x: FloatArray, v: FloatArray, limit: float) -> None:
    if not 0 < limit < 1:
        raise ValueError(f"limit must lie in (0, 1), found {limit}")
    for name, values, allowed in (("loss", x, (x >= 0) & (x <= 1)), ("weight", v, (v > 0) & (v <= 1))):
        if not allowed.all():
            raise ValueError(f"{name} must lie in [0, 1], found {values[~allowed].flat[0]}")

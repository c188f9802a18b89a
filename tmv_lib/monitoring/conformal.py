"""Do new cases look like those before them? A conformal test martingale, which needs no label.

Where cases are exchangeable, the rank of each among itself and all before it is uniform and independent of the ranks
before. Bets that the mean of these p-values is not one half then gain nothing on average. Source: Vovk, Gammerman &
Shafer 2022, Algorithmic Learning in a Random World, chapter 8.
"""

import numpy as np
from numpy.typing import ArrayLike

from tmv_lib.monitoring import betting
from tmv_lib.statistics.arrays import FloatArray, IntArray


def p_values(reference: ArrayLike, stream: ArrayLike, *, rng: np.random.Generator) -> FloatArray:
    """Conformal p-value (n,) of each value of the stream (n,) among the reference (m,) and the stream before it.

    p_i = (number of smaller values + U_i) / (number of values up to i), ties broken at random: small where the value is
    unusually small. One value per patient. Uniform on (0, 1), and independent of each other,
    where reference and stream are exchangeable.
    """
    known, new = np.asarray(reference, dtype=float), np.asarray(stream, dtype=float)
    together = np.concatenate([known, new])
    if not np.isfinite(together).all():
        raise ValueError("values must be finite")
    rank = np.empty(together.size, dtype=np.intp)
    rank[np.lexsort((rng.random(together.size), together))] = np.arange(together.size)
    smaller = earlier_smaller(rank)[known.size :]
    return (smaller + rng.random(new.size)) / (known.size + np.arange(1, new.size + 1))


def earlier_smaller(rank: IntArray) -> IntArray:
    """How many of the ranks (n,), a permutation of 0 to n - 1, that stand before each are smaller than it.

    Down a wavelet tree: at each bit, from the highest, those alike in all higher bits stand together in their order;
    one whose bit is 1 is larger than those before it whose bit is 0. n log n, without a loop over n.
    """
    place, found = np.arange(rank.size), np.zeros(rank.size, dtype=np.intp)  # place: who stands where
    for bit in reversed(range(int(rank.size).bit_length())):
        ranks = rank[place]
        one, start = (ranks >> bit & 1).astype(bool), ranks >> bit + 1 << bit + 1
        zeros = np.concatenate([[0], np.cumsum(~one)])
        before = zeros[:-1] - zeros[start]  # with a 0, in the same node
        found[place[one]] += before[one]
        moved = np.where(one, start + (1 << bit) + np.arange(rank.size) - start - before, start + before)
        place[moved] = place.copy()
    return found


def martingale(p: FloatArray, *, every: int = 1) -> FloatArray:
    """Natural logarithm of the wealth of bets that the mean of p (n,) is not one half, on either side."""
    sides = [betting.wealth(values, 0.5, against="at_most", anew=True, every=every) for values in (p, 1 - p)]
    return np.logaddexp(*sides) - np.log(2)

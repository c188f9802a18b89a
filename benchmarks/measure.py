"""What a benchmark measures, and how it is timed."""

from collections.abc import Callable
from importlib import import_module
from math import inf, isfinite
from time import perf_counter
from typing import Any, NamedTuple


class Measured(NamedTuple):
    """One number of the table in its unit, and the bound that it must keep, where it has one."""

    what: str
    value: float
    unit: str
    at_least: float = -inf
    at_most: float = inf

    @property
    def missed(self) -> bool:
        """True outside the bounds, and for what is not a number."""
        return not self.at_least <= self.value <= self.at_most

    @property
    def bound(self) -> str:
        """The bounds in words, nothing where there is none.

        >>> Measured("ratio", 1.0, "", at_least=0.8, at_most=1.25).bound
        'at least 0.8, at most 1.25'
        """
        bounds = {"at least": self.at_least, "at most": self.at_most}
        return ", ".join(f"{word} {value:g}" for word, value in bounds.items() if isfinite(value))


class Timed(NamedTuple):
    """Least seconds of all repeats, and what the last one returned."""

    seconds: float
    result: Any


def side_by_side(*calls: Callable[[], Any], repeats: int) -> list[Timed]:
    """Time each call, the best of its repeats; they take turns, so that a busy machine slows them alike."""
    seconds = [inf] * len(calls)
    results = [None] * len(calls)
    for _ in range(repeats):
        for i, call in enumerate(calls):
            start = perf_counter()
            results[i] = call()
            seconds[i] = min(seconds[i], perf_counter() - start)
    return [Timed(*timed) for timed in zip(seconds, results)]


def measured(subject: str) -> tuple[str, list[Measured]]:
    """Heading and numbers of the benchmark of that name."""
    benchmark = import_module(f"benchmarks.{subject}")
    return str(benchmark.__doc__).rstrip("."), list(benchmark.measure())

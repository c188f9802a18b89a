"""Figures in words: the one place that turns an estimate into text for a reader."""

from collections.abc import Callable, Sequence

from tmv_lib.statistics.estimate import Estimate

NOT_MEASURED = "not measured"


def _words(estimate: Estimate, number: Callable[[float], str], unit: str = "") -> str:
    if estimate.value is None:
        return f"not applicable because {estimate.absent}"
    value = number(estimate.value) + unit
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({number(estimate.low)} to {number(estimate.high)})"


def share(estimate: Estimate) -> str:
    """A share with its 95 % interval, or why there is none.

    >>> share(Estimate(0.173, 0.132, 0.221)), share(Estimate(absent="there is no such case"))
    ('17.3 % (13.2 to 22.1)', 'not applicable because there is no such case')
    """
    return _words(estimate, lambda x: f"{100 * x:.1f}", " %")


def number(estimate: Estimate) -> str:
    """A figure with its 95 % interval to three decimals.

    >>> number(Estimate(0.9129, 0.8788, 0.9435))
    '0.913 (0.879 to 0.944)'
    """
    return _words(estimate, lambda x: f"{x:.3f}")


def signed(estimate: Estimate) -> str:
    """A difference with its 95 % interval to two decimals, signs and all.

    >>> signed(Estimate(-0.04, -0.4, 0.33))
    '-0.04 (-0.40 to +0.33)'
    """
    return _words(estimate, lambda x: f"{x:+.2f}")


def per_thousand(estimate: Estimate) -> str:
    """A rate with its 95 % interval, of 1,000.

    >>> per_thousand(Estimate(0.00034, -0.00001, 0.0012))
    '0.3 (0.0 to 1.2)'
    """
    return _words(estimate, lambda x: f"{round(1000 * x, 1) + 0.0:.1f}")  # no -0.0


def few(names: Sequence[str]) -> str:
    """A list in words, no longer than three.

    >>> few(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def counted(count: int, plural: str) -> str:
    """A count of things whose plural ends in s.

    >>> counted(1, "images"), counted(1860, "patients")
    ('1 image', '1,860 patients')
    """
    return f"{count:,} {plural.removesuffix('s') if count == 1 else plural}"


def plain(name: str) -> str:
    """A key as words."""
    return name.replace("_", " ")

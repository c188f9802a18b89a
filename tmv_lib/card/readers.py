"""The page of a reader study, from its figures, and the lines that it gives to `params.yaml`."""

from tmv_lib.card import pages, words
from tmv_lib.pipeline.record import Figures
from tmv_lib.readers.answer import DECISIONS
from tmv_lib.readers.readings import ARMS
from tmv_lib.statistics.estimate import Estimate

HEADS = {"sensitivity": "Sensitivity", "specificity": "Specificity", "auroc": "AUC of the confidence"}
HEADS |= {"seconds": "Seconds per case"}
ONE_READER = "One reader: the intervals speak of other cases, not of other readers."


def reader_page(figures: Figures, picture: str) -> str:
    """The page as HTML. figures: the metrics of the study; picture: the name of the file beside it."""
    arms = {
        ARMS[arm]: [str(of["n_readers"]), f"{of['n']} ({of['n_positive']} positive)", *_cells(of, difference=False)]
        for arm, of in figures["arms"].items()
    }
    differences = {
        f"{ARMS[of['arm']]} rather than {ARMS[of['minus']]}": [str(of["n_readers"]), *_cells(of, difference=True)]
        for of in figures["differences"].values()
    }
    return pages.fill(
        "card/readers.html.j2",
        answers=answers(figures),
        tables=[
            ("By arm", ["Readers", "Cases", *HEADS.values()], arms),
            ("Differences", ["Readers", *HEADS.values()], differences),
        ],
        deferred=on_deferred(figures),
        lines=params_lines(figures),
        picture=picture,
    )


def answers(figures: Figures) -> list[str]:
    """What each difference of two arms shows, and what the intervals do not speak of."""
    found = []
    for of in figures["differences"].values():
        shown = [_shown(name, of.estimate(name)) for name in DECISIONS]
        found.append(f"{ARMS[of['arm']].capitalize()} rather than {ARMS[of['minus']]}: {'; '.join(shown)}.")
    compared = [*figures["arms"].values(), *figures["differences"].values()]
    return found + [ONE_READER] * any(of["n_readers"] == 1 for of in compared)


def _shown(name: str, estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{name} {_points(estimate)}"
    differs = estimate.low > 0 or estimate.high < 0
    return f"{name} {_points(estimate)}, {'a difference' if differs else 'no difference shown'}"


def on_deferred(figures: Figures) -> str:
    """How doctors read the cases that the system leaves to them."""
    of = figures["deferred"]
    if "absent" in of:
        return f"How doctors read deferred cases is not measured: {of['absent']}."
    return (
        f"On {words.counted(of['n'], 'cases')} that the system defers ({of['n_positive']} positive),"
        f" {words.counted(of['n_readers'], 'readers')}, reading {ARMS[of['arm']]}, had a sensitivity of"
        f" {words.share(of.estimate('sensitivity'))} and a specificity of {words.share(of.estimate('specificity'))}."
    )


def params_lines(figures: Figures) -> list[str]:
    """`deferral.reader` as it is to stand in `params.yaml`; empty where one of its figures is not measured, or 0."""
    of = figures["deferred"]
    found = {} if "absent" in of else {name: of.estimate(name) for name in DECISIONS}
    if not found or not all(estimate.value for estimate in found.values()):
        return []
    return ["deferral:", "  reader:"] + [
        f"    {name}: {estimate.value:.3g}  # 95 %: {estimate.low:.3g} to {estimate.high:.3g}"
        for name, estimate in found.items()
    ]


def _cells(of: Figures, *, difference: bool) -> list[str]:
    alone = {"sensitivity": words.share, "specificity": words.share, "auroc": words.number, "seconds": _seconds}
    differing = {"sensitivity": _points, "specificity": _points, "auroc": words.signed, "seconds": words.signed}
    return [(differing if difference else alone)[name](of.estimate(name)) for name in HEADS]


def _points(estimate: Estimate) -> str:
    """A difference of shares in percentage points.

    >>> _points(Estimate(0.051, -0.012, 0.114))
    '+5.1 points (-1.2 to +11.4)'
    """
    if estimate.value is None:
        return words.share(estimate)
    return f"{100 * estimate.value:+.1f} points ({100 * (estimate.low or 0):+.1f} to {100 * (estimate.high or 0):+.1f})"


def _seconds(estimate: Estimate) -> str:
    if estimate.value is None:
        return words.share(estimate)
    return f"{estimate.value:.1f} ({estimate.low:.1f} to {estimate.high:.1f})"

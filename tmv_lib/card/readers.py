"""The page of a reader study, from its figures, and the line that the answer puts into `params.yaml`."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tmv_lib.card import words
from tmv_lib.pipeline.record import Figures
from tmv_lib.readers.answer import DECISIONS
from tmv_lib.readers.readings import ARMS
from tmv_lib.statistics.estimate import Estimate

SHOWN = {  # figures of an arm, with their heading and how they and their differences are written
    "sensitivity": ("Sensitivity", words.share, lambda of: _points(of)),
    "specificity": ("Specificity", words.share, lambda of: _points(of)),
    "auroc": ("AUC of the confidence", words.number, words.signed),
    "seconds": ("Seconds per case", lambda of: _seconds(of, ""), lambda of: _seconds(of, "+")),
}


def reader_page(figures: Figures, picture: str) -> str:
    """The page as HTML. figures: the metrics of the study; picture: the file beside it."""
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=True, trim_blocks=True
    ).get_template("readers.html.j2")
    arms = figures["arms"]
    heads = ["", "Readers", "Cases", *(head for head, *_ in SHOWN.values())]
    rows = [
        [ARMS[arm], of["n_readers"], f"{of['n']} ({of['n_positive']} positive)"]
        + [written(of.estimate(name)) for name, (_, written, _) in SHOWN.items()]
        for arm, of in arms.items()
    ]
    differences = [
        [difference_name(key)] + [written(of.estimate(name)) for name, (*_, written) in SHOWN.items()]
        for key, of in figures["differences"].items()
    ]
    return template.render(
        answers=answers(figures),
        heads=heads,
        rows=rows,
        difference_heads=["", *heads[3:]],
        differences=differences,
        deferred=on_deferred(figures),
        picture=picture,
        line=params_lines(figures),
        one_reader=any(of["n_readers"] == 1 for of in arms.values()),
    )


def answers(figures: Figures) -> list[str]:
    """What each difference of sensitivity and of specificity shows, a sentence each."""
    lines = []
    for key, of in figures["differences"].items():
        second, first = key.split("_minus_")
        for name in DECISIONS:
            found = of.estimate(name)
            if found.value is None or found.low is None or found.high is None:
                continue
            shown = "higher" if found.low > 0 else "lower" if found.high < 0 else "not shown to differ"
            than = f"{ARMS[second]} than {ARMS[first]}" if found.low > 0 or found.high < 0 else "between"
            if than == "between":
                lines.append(f"{name.capitalize()} is {shown} {ARMS[second]} and {ARMS[first]}: {_points(found)}.")
            else:
                lines.append(f"{name.capitalize()} is {shown} {than}: {_points(found)}.")
    return lines

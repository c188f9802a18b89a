"""The two pages of an acceptance test that people sign: the plan before the first label, the answer after the last."""

from typing import NamedTuple

import pandas as pd

from tmv_lib.card import in_use, pages
from tmv_lib.monitoring import betting
from tmv_lib.monitoring.acceptance import Protocol
from tmv_lib.pipeline.record import Figures
from tmv_lib.statistics.estimate import percent


class Table(NamedTuple):
    """A heading, and rows of which the first names the columns."""

    title: str
    rows: list[list[str]]


def planned(protocol: Protocol, plan: pd.DataFrame, origin: str) -> str:
    """The plan as HTML: what is promised, and how many patients it will take."""
    lines = [
        f"{in_use.SAYS[name](limit).capitalize()}: {_fewest(limit, protocol)}"
        for name, limit in protocol.promises.items()
    ]
    lines += [
        f"The same among patients with {column} {' and with '.join(values)}."
        for column, values in protocol.subgroups.items()
    ]
    lines += [
        f"Accepted when every promise is: a system with a false one is accepted in at most {percent(protocol.alpha)} of"
        " such tests.",
        f"Rejected when one promise is shown to be broken: a system without such a one is rejected in at most"
        f" {percent(protocol.alpha)} of such tests.",
        f"It ends after {protocol.most_patients:,} patients at the latest; what has not been accepted then was not"
        " shown.",
        "Everybody may look after every patient. Cases are taken as they come, none is left out, and the reader does"
        " not see what the system said.",
    ]  # fmt: skip
    tables = []
    for name, rows in plan.groupby("promise", sort=False):
        title = (
            f"{in_use.SAYS[str(name)](rows['limit'].iloc[0]).capitalize()}: patients of whom it speaks, all labelled"
        )
        tables.append(Table(title, [["true risk", "ends in", "half of tests by", "nine of ten by", "in time"], *(
            [percent(row.true_risk), row.ends_in, *(_number(n, protocol) for n in (row.median, row.nine_in_ten)),
             percent(row.within)] for row in rows.itertuples())]))  # fmt: skip
    return _page("Plan of an acceptance test", "What is promised", lines, tables, "", protocol, origin)


def judged(protocol: Protocol, figures: Figures, origin: str) -> str:
    """The answer as HTML."""
    answer, *lines = in_use.acceptance(figures)
    return _page("Acceptance test", "Promise by promise", lines, [], answer, protocol, origin)


def _fewest(limit: float, protocol: Protocol) -> str:
    return f"without an error it takes {betting.fewest(limit, protocol.alpha):,} labelled patients."


def _number(n: float, protocol: Protocol) -> str:
    return f"more than {protocol.most_patients:,}" if pd.isna(n) else f"{int(n):,}"


def _page(title: str, heading: str, lines: list[str], tables: list[Table], answer: str, protocol: Protocol,
          origin: str) -> str:  # fmt: skip
    values = {"title": title, "heading": heading, "lines": lines, "tables": tables, "answer": answer}
    return pages.fill("card/signed.html.j2", **values, protocol=protocol, origin=origin)

"""The viewer's pages as static HTML, for phones, print and free hosting: `make demo-export`.

Each page holds all that it shows and asks for nothing else; what the system says of a case is on a page of its own.
"""

import json
import re
import sys
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from demo import answers, cases, evidence, film, maps, policy
from demo.disk import Disk
from demo.page import NOT_CLINICAL, Picture, Section, figure, looked
from tmv_lib.pipeline.files import whole

OUT = Path("demo_export")
FIRST = 30  # cases from the start of the random queue
OF_A_KIND = 3  # further cases of each kind of patient
THRESHOLDS = np.arange(0, 1, 0.1).round(1)
RUN = Path(__file__).with_name("export.js")
STYLE = Path(__file__).with_name("export.css")


def main() -> None:
    """Write every page into `demo_export`."""
    disk = Disk(Path.cwd())
    try:
        known = cases.collect(disk)
    except ValueError as error:
        sys.exit(f"{error}. Run `make repro` first.")
    pages = written(known)
    for name, page in pages.items():
        with whole(OUT / name) as temporary:
            temporary.write_text(page, encoding="utf-8")
    print(f"{len(pages)} pages: open {OUT / 'index.html'}")


def written(known: cases.Collection) -> dict[str, str]:
    """Every page by its file name."""
    queues = cases.queues(known)
    chosen = {key: numbers[:OF_A_KIND] for key, (_, numbers) in queues.items() if key != cases.RANDOM}
    first = queues[cases.RANDOM][1][:FIRST]
    numbers = sorted({*first, *(number for some in chosen.values() for number in some)})
    kinds = [f"<h2>{escape(queues[key][0])}</h2>{links(some)}" for key, some in chosen.items()]
    pages = {
        "index.html": page("Start", of_start(known, first), known),
        "kinds.html": page("Kinds of patients", "<h1>Kinds of patients</h1>" + "".join(kinds), known),
        "policy.html": page("Policy", of_policy(known), known),
        "evidence.html": page("Evidence", of_evidence(known.disk), known),
    }
    for number in numbers:
        turns = turn(number, first)
        pages[f"case-{number}.html"] = page(f"Case {number}", of_case(known, number, turns), known)
        pages[f"answer-{number}.html"] = page(f"Answer to case {number}", of_answer(known, number, turns), known)
    return pages


def of_start(known: cases.Collection, first: list[int]) -> str:
    """The verdict first, then the cases."""
    verdict, *others = evidence.first_page(known.disk)
    head, when, *why = [*verdict.lines, ""]
    lines = "".join(f"<p>{marked(line)}</p>" for line in why if line)
    told = f'<div class="verdict"><h2>{escape(head)}</h2><p><strong>{escape(when)}</strong></p>{lines}</div>'
    lists = [
        f"<h2>{escape(each.title)}</h2><ul>{''.join(f'<li>{marked(line)}</li>' for line in each.lines)}</ul>"
        for each in others
    ]
    return f"<h1>{escape(verdict.title)}</h1>{told}{''.join(lists)}<h2>Cases</h2>{INTRODUCTION}{links(first)}{KINDS}"


INTRODUCTION = (
    "<p>Patients as they come, errors at their true rate. Look at a case, make up your mind, then turn to the page with"
    " what the system says.</p>"
)
KINDS = (
    '<p><a href="kinds.html">Choose a kind of patient instead</a>: whoever does so has chosen to know something'
    " beforehand.</p><p>Your own images need the live viewer: <code>make demo</code>.</p>"
)


def page(title: str, body: str, known: cases.Collection) -> str:
    """A whole page: what it says, and the ways to the others."""
    ways = {"index.html": "Start", "policy.html": "Policy", "evidence.html": "Evidence"}
    menu = "".join(f'<a href="{path}">{name}</a>' for path, name in ways.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;'
        " style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}{film.STYLE}</style></head><body>"
        f'<header><nav aria-label="Pages">{menu}</nav><p><strong>{NOT_CLINICAL}</strong> {escape(known.names.note)}</p>'
        f'</header><main>{body}</main><script type="module">{film.SCRIPT}{RUN.read_text(encoding="utf-8")}</script>'
        "</body></html>\n"
    )


def marked(words: str) -> str:
    """Our Markdown as HTML: bold and code.

    >>> marked("**92 of 100** such `cases` < all")
    '<strong>92 of 100</strong> such <code>cases</code> &lt; all'
    """
    words = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(words, quote=False))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", words)


def links(numbers: list[int]) -> str:
    """Case numbers to choose from."""
    if not numbers:
        return "<p>There is no such case.</p>"
    entries = "".join(f'<li><a href="case-{number}.html">Case {number}</a></li>' for number in numbers)
    return f'<ul class="cases">{entries}</ul>'


def drawn(picture: Picture) -> str:
    """A picture with its caption; a diagram stays legible, and is scrolled, where the screen is narrower."""
    if isinstance(picture.image, bytes):
        return figure(picture)
    return f'<div class="diagram" tabindex="0">{figure(picture)}</div>'


def tabulated(table: pd.DataFrame) -> str:
    """A table whose first column names its rows."""
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in table)
    rows = []
    for _, (first, *rest) in table.iterrows():
        cells = "".join(f"<td>{escape(str(value))}</td>" for value in rest)
        rows.append(f'<tr><th scope="row">{escape(str(first))}</th>{cells}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def section(each: Section) -> str:
    """A section of a page."""
    parts = [f"<h2>{escape(each.title)}</h2>" if each.title else ""]
    parts += [f"<p>{marked(line)}</p>" for line in each.lines]
    if each.pictures:
        row = "".join(map(drawn, each.pictures))
        parts.append(f'<div class="row">{row}</div>' if isinstance(each.pictures[0].image, bytes) else row)
    parts.append("" if each.table is None else tabulated(each.table))
    return f"<section>{''.join(parts)}</section>"


def projected(data: dict[str, Any]) -> str:
    """A film: the image alone where no script runs."""
    own = data["images"][0]
    still = f'<img src="{own["src"]}" alt="{escape(own["alt"])}">'
    return f'<div class="still" data-film="{escape(json.dumps(data))}">{still}</div>'


def of_case(known: cases.Collection, number: int, turns: str) -> str:
    """The image, and the ways on: nothing that gives the case away."""
    words = (known.names.positive, known.names.negative, "I cannot tell")
    answers = "".join(f'<label><input type="radio" name="own">{escape(word)}</label>' for word in words)
    return (
        f"<h1>Case {number}</h1>{turns}{projected(film.of_case(known, number))}"
        f"<fieldset><legend>Your own reading, before the system's</legend>{answers}</fieldset>"
        f'<p><a class="reveal" href="answer-{number}.html">Reveal what the system says</a></p>'
    )


def turn(number: int, first: list[int]) -> str:
    """The ways to the cases before and after in the random queue; from a chosen case, back to the choice."""
    if number not in first:
        return '<p class="turn"><a href="kinds.html">Kinds of patients</a></p>'
    place = first.index(number)
    ways = [("prev", "Previous", first[place - 1])] if place else []
    ways += [("next", "Next", first[place + 1])] if place + 1 < len(first) else []
    return "".join(
        ['<p class="turn">', *(f'<a rel="{rel}" href="case-{to}.html">{name}</a>' for rel, name, to in ways), "</p>"]
    )


def of_answer(known: cases.Collection, number: int, turns: str) -> str:
    """What is known of a case."""
    head = f"<h1>Answer to case {number}</h1>{turns}"
    back = f'<p><a href="case-{number}.html">Back to the image alone</a></p>'
    parts = [head, back, section(answers.reveal(known, number))]
    if not known.table["deferred"][number]:
        overlay = maps.first(maps.overlays(known, number))
        parts += [projected(film.of_case(known, number, overlay)), section(looked(overlay))]
        more = {"Maps of every network, and under mild changes": maps.further, "How sure, and why": cases.details}
        for words, tell in more.items():
            body = "".join(map(section, tell(known, number)))
            parts.append(f"<details><summary>{words}</summary>{body}</details>")
    return "".join(parts)


def of_policy(known: cases.Collection) -> str:
    """The policy at the point of the run, and along the threshold."""
    run = policy.knobs(known)
    words = "Of 100 patients like these; who is not decided goes to a doctor. The cost is that of a case."
    along = Section("At other thresholds", [words], table=policy.along(known, run, THRESHOLDS))
    command = policy.command(known, run._replace(threshold=0.5))
    others = f"Other costs, prevalences and readers: `make demo`, or with intervals `{command}`."
    measured = f"<p>{escape(policy.measured(known))}</p>"
    told = f"{section(policy.answer(known, run))}{drawn(policy.curve(known, run))}"
    return f"<h1>Policy</h1>{told}{measured}{section(along)}<p>{marked(others)}</p>"


def of_evidence(disk: Disk) -> str:
    """Each question, its answer, its diagrams and what it does not show."""
    parts = ["<h1>Evidence</h1>"]
    for each in evidence.questions(disk):
        plots = [
            f"<h3>{escape(picture.caption)}</h3>{drawn(picture._replace(caption=''))}"
            for picture in evidence.plots(disk, each.stage)
        ]
        words = Section(each.question, [each.answer, each.limit])
        parts += [section(words), *plots]
    return "".join(parts)


if __name__ == "__main__":
    main()

"""The report of `evaluate`: one file, verdict first, diagrams read by this run's figures, hostile text harmless."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from test_evaluate import predictions, write_quick_knobs

from commands import evaluate
from tmv_lib.card import findings
from tmv_lib.pipeline.record import Figures, read_metrics
from tmv_lib.report import diagrams, drawing
from tmv_lib.report.report import Origin, unknown

ROOT = Path(__file__).parents[1]
HOSTILE = '<script>alert("1")</script>'
ORIGIN = Origin(f"tmv evaluate '{HOSTILE}.csv' --out report", {f"{HOSTILE}.csv": "0" * 64})


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """Two members of 400 patients in all splits, with a subgroup that bears a hostile name, evaluated."""
    folder = tmp_path_factory.mktemp("report")
    write_quick_knobs(folder)
    for name, noise in (("mine", 0.0), ("yours", 1.0)):
        table = predictions(noise=noise)[lambda rows: rows.index % 8 < 2]  # a quarter of the patients of each split
        table.assign(sex=table["sex"].replace("f", HOSTILE)).to_csv(folder / f"{name}.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        evaluate.evaluate([Path("mine.csv"), Path("yours.csv")], Path("report"))
    assert (folder / "report/report.html").is_file()
    return folder / "report"


def written(folder: Path) -> str:
    evaluate.report(folder, dict.fromkeys(("mine", "yours")), "mine, yours", [HOSTILE], ORIGIN)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(evaluated) -> str:
    return written(evaluated)


class Reader(HTMLParser):
    """Tags with their attributes, the words of the page, and the headings of its parts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def metrics(folder: Path) -> dict[str, Figures | None]:
    return {path.stem: read_metrics(path.stem, root=folder) for path in sorted((folder / "metrics").iterdir())}


def test_it_is_one_file_that_asks_for_nothing(page):
    read = Reader(page)
    assert not {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in read.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), tag
            if name in ("src", "href", "xlink:href", "srcset", "action", "style"):
                assert not re.search(r"(?<!data)[\w+-]*:(?=//)|@import|javascript:", value or ""), (tag, value)
    assert not re.findall(r"url\((?!#)", page)
    inside = {attributes.get("id") for _, attributes in read.tags}
    links = [attributes["href"] for tag, attributes in read.tags if tag == "a"]
    assert len(links) == 6
    assert all(str(link).removeprefix("#") in inside for link in links)


def test_the_verdict_comes_first_and_nothing_is_left_empty(page, evaluated):
    words = "".join(Reader(page).words)
    heads = {"use": "Use it", "do_not_use": "Do not use it", "cannot_tell": "Cannot tell yet"}
    head = heads[json.loads((evaluated / "metrics/ensemble.json").read_text())["verdict"]["answer"]]
    assert page.index("<main>") < page.index(head) < page.index('<h1 class="part"')
    assert re.findall(r'<h1 class="part"[^>]*>(.*?)</h1>', page) == [
        *("Trust card", "Diagrams", "Each question, and its answer", "Figures"),
        *("What cannot be said from this file, and why", "How to make this report again", "Words"),
    ]
    assert not re.search(r"\b(nan|None|inf)\b", words)
    assert not re.search(r"</h[12]>\s*(<h1|<div class=\"(wide|diagrams)\">\s*</div>)", page)
    assert "yours disagrees with mine on" in words
    assert "In the study that this pipeline follows" not in words


def test_hostile_text_is_text(page):
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;alert") >= 4  # a subgroup, a remark, the command, a file


def test_the_same_run_gives_the_same_bytes_without_a_date(evaluated, page):
    assert written(evaluated) == page
    assert "dc:date" not in page


def test_every_table_of_a_diagram_is_drawn_and_read_with_its_own_figures(evaluated):
    run = metrics(evaluated)
    made = {one.question: one for one in diagrams.diagrams(run, evaluated)}
    drawn = {(stage, name) for stage, name, _ in diagrams.DIAGRAMS}
    there = {(path.parent.name, path.stem) for path in evaluated.glob("plots/*/*.csv")}
    # the card has the first; the second is said in a sentence; the rest has no rows without a network
    assert there - drawn == {
        ("calibration", "reliability"),
        ("site", "learning_curve"),
        ("uncertainty", "convergence"),
        ("uncertainty", "out_of_distribution"),
    }
    assert len(made) == len(drawn) + 1 - 1  # a diagram of reliability per member; one of ROC for both tables
    found = run["ensemble"]["deferral"]
    told = {
        "What does handing over the least certain cases buy?": f"{100 * found['coverage']:.1f} %",
        "What would another threshold cost?": f"{found['failure_cost']:.3f}",
        "Is it better than calling all, or none, positive?": f"{1000 * found['net_benefit']:.1f} (",
        "When yours says 87 %, is it right 87 % of the time?": "After calibration on val: ",
        "Does it rank positives above negatives?": f"{run['baseline']['baseline']['auroc']:.3f}",
        "How many of mine's positive calls are right?": f"{run['baseline']['baseline']['average_precision']:.3f}",
    }
    for question, words in told.items():
        assert words in made[question].reading, question
    for one in made.values():
        assert one.svg.startswith("<svg")
        assert one.svg.count("<path") > 5
        assert len(one.reading) > 80


def test_a_reading_follows_its_metrics(evaluated):
    run = metrics(evaluated)
    rows = pd.read_csv(evaluated / "plots/ensemble/risk_coverage.csv")
    values = json.loads((evaluated / "metrics/ensemble.json").read_text())
    values["deferral"] |= {"coverage": 0.0, "selective_risk_absent": "nothing is decided"}
    del values["deferral"]["selective_risk"]
    (one,) = diagrams._risk_coverage(rows, run | {"ensemble": Figures(values, "ensemble.json")})
    assert "It decides no case; if it decided all" in one.reading
    values["deferral"].pop("errors_deciding_all")
    with pytest.raises(ValueError, match=r"ensemble\.json deferral: no metric 'errors_deciding_all'"):
        diagrams._risk_coverage(rows, run | {"ensemble": Figures(values, "ensemble.json")})


def test_a_name_in_a_diagram_is_no_formula_and_no_markup():
    rows = pd.DataFrame({"name": ["$x_", "<b>&"], "value": [0.1, 0.2], "low": 0.0, "high": 0.3, "series": "$\\frac{"})
    svg = drawing.intervals(rows, "value", "name", at=0, x="$")
    assert "&lt;b&gt;&amp;" in svg
    assert "<b>" not in svg
    assert "$x" in svg
    assert svg == drawing.intervals(rows, "value", "name", at=0, x="$")


def test_what_cannot_be_said_bears_its_reason():
    table = unknown({"explanations": None, "failures": None, "site": Figures({"features": {"absent": "no"}}, "site")})
    assert table[1:] == [
        ["where the model looks, what kinds of mistakes it makes", table[1][1]],
        ["whether the images look different, whatever the model says of them", "no"],
    ]


def test_the_page_of_findings_leads_to_the_report_of_each():
    rows = [findings.absent_row("<i>a</i>", findings.EXPLORATORY, predictions(), "no verdict")]
    page = findings.render(rows, "html", title="t", remarks=[], reports={"<i>a</i>": "i_a_i/report.html"})
    assert '<a href="i_a_i/report.html">&lt;i&gt;a&lt;/i&gt;</a>' in page
    assert "<i>a" not in page
    assert "<a " not in findings.render(rows, "html", title="t", remarks=[], reports={})

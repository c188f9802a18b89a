"""The logic of the app's pages, by streamlit's AppTest, on a small made-up run: no browser, no layout."""

import re

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from demo import answers, cases
from demo.disk import Disk
from demo.tally import Readings
from tests.made_world import ROOT, make

CASES = "import importlib, demo.app\nimportlib.reload(demo.app).of_cases()"  # AppTest opens pages of files alone
SAYS = re.compile(r"estimated chance|Reference label|lanted in this|person|NORMAL|lobar|answer flips")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("world"))


@pytest.fixture
def app(world, monkeypatch):
    monkeypatch.setenv("TMV_ROOT", str(world))
    monkeypatch.setattr("sys.argv", ["app"])
    return AppTest.from_string(CASES, default_timeout=60).run()


def words(app):
    """Every sentence on the page."""
    kinds = (app.markdown, app.caption, app.title, app.header, app.info, app.warning, app.text)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def first(world, *, deferred):
    known = cases.collect(Disk(world))
    return int(known.table.index[known.table["deferred"] == deferred][0])


def go_to(app, number):
    return app.number_input(key="search").set_value(number).run()


def test_nothing_there_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("TMV_ROOT", str(tmp_path))
    app = AppTest.from_file(str(ROOT / "demo/app.py"), default_timeout=60).run()
    assert not app.exception
    assert "make repro" in app.info[0].value
    assert "data/prepare/cases.csv" in app.info[0].value


def test_before_the_reveal_nothing_is_said(app):
    for _ in range(5):
        assert not app.exception
        assert not SAYS.search(words(app))
        app.button(key="next").click().run()


def test_the_first_page_is_the_verdict(world, monkeypatch):
    monkeypatch.setenv("TMV_ROOT", str(world))
    app = AppTest.from_file(str(ROOT / "demo/app.py"), default_timeout=60).run()
    assert not app.exception
    assert app.title[0].value == "When should I use this?"


def test_an_answer_reveals_the_case_and_is_counted(app, world):
    number = first(world, deferred=False)
    go_to(app, number)
    assert app.title[0].value == f"Case {number}"
    assert "nothing answered yet" in words(app)
    app.button(key="answer yes").click().run()
    assert not app.exception
    assert re.search(r"estimated chance (under |over )?\d+ %", words(app))
    right = int(cases.collect(Disk(world)).table["y_true"][number])
    assert f"you were right in {right} of 1" in words(app)
    assert not any(button.key.startswith("answer") for button in app.button)  # it can no longer be changed


def test_a_reveal_without_an_answer_counts_for_nobody(app, world):
    go_to(app, first(world, deferred=False))
    app.button(key="reveal").click().run()
    assert "nothing answered yet" in words(app)
    assert "Reference label" in words(app)


def test_a_deferred_case_says_nothing_to_who_has_not_read_it(app, world):
    go_to(app, first(world, deferred=True))
    app.button(key="reveal").click().run()
    assert answers.DEFERRED in words(app)
    assert not SAYS.search(words(app))
    assert not app.toggle


def test_a_deferred_case_says_what_was_withheld_to_who_has_read_it(app, world):
    go_to(app, first(world, deferred=True))
    app.button(key="answer no").click().run()
    assert answers.DEFERRED in words(app)
    assert "Had it decided: " in words(app)
    assert "it left 1 to you" in words(app)


def test_maps_and_doubts_come_on_demand(app, world):
    go_to(app, first(world, deferred=False))
    app.button(key="answer no").click().run()
    before = words(app)
    assert "untrained" not in before
    assert "Nearest training cases" not in before
    for toggle in range(2):
        app.toggle[toggle].set_value(True).run()
    assert not app.exception
    assert "Nearest training cases" in words(app)
    assert "its answer flips under" in words(app)


def test_the_address_names_the_case_and_the_session_keeps_the_readings(app, world, monkeypatch):
    number = first(world, deferred=False)
    go_to(app, number)
    app.button(key="answer yes").click().run()
    again = AppTest.from_string(CASES, default_timeout=60)  # as after a refresh
    for name, value in app.query_params.items():
        again.query_params[name] = value
    again.run()
    assert again.title[0].value == f"Case {number}"
    assert "Reference label" in words(again)
    other = AppTest.from_string(CASES, default_timeout=60)  # a reader of their own
    other.query_params["case"] = str(number)
    other.run()
    assert other.title[0].value == f"Case {number}"
    assert not SAYS.search(words(other))


@pytest.mark.parametrize("address", [{"case": "0"}, {"case": "x"}, {"case": "99999"}, {"queue": "none such"}])
def test_an_address_that_names_nothing_opens_the_first_case(world, monkeypatch, address):
    monkeypatch.setenv("TMV_ROOT", str(world))
    monkeypatch.setattr("sys.argv", ["app"])
    app = AppTest.from_string(CASES, default_timeout=60)
    for name, value in address.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    assert app.title[0].value == "Case 1"


def test_readings_go_to_the_file_that_is_named(world, monkeypatch, tmp_path):
    path = tmp_path / "readings.csv"
    monkeypatch.setenv("TMV_ROOT", str(world))
    monkeypatch.setattr("sys.argv", ["app", "--readings", str(path)])
    app = AppTest.from_string(CASES, default_timeout=60).run()
    app.button(key="answer no").click().run()
    app.button(key="next").click().run()
    app.button(key="answer cannot tell").click().run()
    table = cases.collect(Disk(world)).table
    kept = {image_id: one.answer for image_id, one in Readings(path).by_case.items()}
    assert kept == {table["image_id"][1]: "no", table["image_id"][2]: "cannot tell"}


def test_a_file_that_holds_no_readings_is_said_and_left_alone(world, monkeypatch, tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n", encoding="utf-8")
    monkeypatch.setenv("TMV_ROOT", str(world))
    monkeypatch.setattr("sys.argv", ["app", "--readings", str(path)])
    app = AppTest.from_file(str(ROOT / "demo/app.py"), default_timeout=60).run()
    assert "the columns are a, b" in app.error[0].value
    assert path.read_text(encoding="utf-8") == "a,b\n"


def test_the_tally_is_off_for_who_chose_what_to_see(app, world):
    app.selectbox(key="queue").set_value("positive").run()
    assert "your tally is off" in words(app)
    assert "You against the model" not in words(app)
    number = int(app.title[0].value.removeprefix("Case "))
    app.selectbox(key="queue").set_value(cases.RANDOM).run()
    go_to(app, number)
    app.button(key="answer yes").click().run()
    assert "nothing answered yet" in words(app)  # it was known beforehand


@pytest.mark.parametrize("queue", ["negative", "uncertain", "wrong", "deferred", "unstable", "clinical ambiguity"])
def test_every_kind_of_patient_opens(app, queue):
    app.selectbox(key="queue").set_value(queue).run()
    assert not app.exception


def test_a_case_that_is_not_among_these_is_said(app, world):
    negative = int(cases.collect(Disk(world)).table["y_true"].eq(0).idxmax())
    app.selectbox(key="queue").set_value("positive").run()
    go_to(app, negative)
    assert f"Case {negative} is not among these patients." in words(app)


def test_files_that_vanish_while_it_runs_are_not_measured(tmp_path, monkeypatch):
    world = make(tmp_path)
    monkeypatch.setenv("TMV_ROOT", str(world))
    app = AppTest.from_string(CASES, default_timeout=60).run()
    go_to(app, first(world, deferred=False))
    app.button(key="reveal").click().run()
    app.toggle[1].set_value(True).run()
    (world / "data/uncertainty/cases.csv").unlink()
    (world / "data/explanations/maps_resnet50.npy").unlink()
    app.run()
    assert not app.exception
    assert "not measured" in words(app)
    table = pd.read_csv(world / "data/ensemble/cases.csv").assign(y_prob=0.25, deferred=False)
    table.to_csv(world / "data/ensemble/cases.csv", index=False)
    app.run()
    assert "estimated chance 25 %" in words(app)

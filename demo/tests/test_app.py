"""The logic of the app's pages, by streamlit's AppTest, on a small made-up run: no browser, no layout."""

import re

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from demo import cases
from demo.disk import Disk
from tests.made_world import ROOT, make

SAYS = re.compile(r"estimated chance|Reference label|lanted in this|person|NORMAL|lobar|answer flips")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("world"))


@pytest.fixture
def app(world, monkeypatch):
    monkeypatch.setenv("TMV_ROOT", str(world))
    return AppTest.from_file(str(ROOT / "demo/app.py"), default_timeout=60).run()


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


def test_an_answer_is_counted_at_the_reveal(app, world):
    number = first(world, deferred=False)
    go_to(app, number)
    assert app.title[0].value == f"Case {number}"
    app.radio(key=f"reading {number}").set_value("yes").run()
    assert "nothing answered yet" in words(app)
    app.button(key="reveal").click().run()
    assert not app.exception
    assert re.search(r"estimated chance \d+ of 100", words(app))
    right = int(cases.collect(Disk(world)).table["y_true"][number])
    assert f"you were right in {right} of 1" in words(app)
    assert not app.radio  # what was answered can no longer be changed


def test_a_reveal_without_an_answer_counts_for_nobody(app, world):
    go_to(app, first(world, deferred=False))
    app.button(key="reveal").click().run()
    assert "nothing answered yet" in words(app)
    assert "Reference label" in words(app)


def test_a_deferred_case_says_nothing_after_the_reveal_either(app, world):
    go_to(app, first(world, deferred=True))
    app.button(key="reveal").click().run()
    assert cases.DEFERRED in words(app)
    assert not SAYS.search(words(app))
    assert not any("Opacity" in slider.label for slider in app.slider)


def test_the_tally_is_off_for_who_chose_what_to_see(app, world):
    app.selectbox(key="queue").set_value("positive").run()
    assert "your tally is off" in words(app)
    assert "You against the model" not in words(app)
    number = int(app.title[0].value.removeprefix("Case "))
    app.selectbox(key="queue").set_value(cases.RANDOM).run()
    go_to(app, number)
    app.radio(key=f"reading {number}").set_value("yes").run()
    app.button(key="reveal").click().run()
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
    app = AppTest.from_file(str(ROOT / "demo/app.py"), default_timeout=60).run()
    go_to(app, first(world, deferred=False))
    app.button(key="reveal").click().run()
    (world / "data/uncertainty/cases.csv").unlink()
    (world / "data/explanations/maps_resnet50.npy").unlink()
    app.run()
    assert not app.exception
    assert "not measured" in words(app)
    table = pd.read_csv(world / "data/ensemble/cases.csv").assign(y_prob=0.25, deferred=False)
    table.to_csv(world / "data/ensemble/cases.csv", index=False)
    app.run()
    assert "estimated chance 25 of 100" in words(app)

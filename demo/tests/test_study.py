"""The page of a reader study, by streamlit's AppTest and once in a real browser, on a small made-up run."""

import re
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from conftest import serve
from streamlit.testing.v1 import AppTest
from test_browser import overflows, serious, settled, told

from demo import answers, cases, session
from demo.disk import Disk
from tests.made_world import ROOT, make

SAYS = re.compile(r"estimated chance|No answer|person|NORMAL|alone|system|deferral")
PLAN = """study:
  seed: 1
  readers: [anna, ben]
  arms: [alone, system, deferral]
  design: {design}
  washout_days: {days}
  positive: 3
  negative: 3
  folder: readings
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("world"))


@pytest.fixture
def begin(world, tmp_path, monkeypatch):
    """Open the page for a reader; the readings go to a folder of the test's own."""

    def open_page(*, reader="anna", design="split", days=0):
        text = PLAN.format(design=design, days=days).replace("readings", str(tmp_path / "readings"))
        (tmp_path / "plan.yaml").write_text(text, encoding="utf-8")
        monkeypatch.setenv("TMV_ROOT", str(world))
        monkeypatch.setenv("TMV_STUDY", str(tmp_path / "plan.yaml"))
        app = AppTest.from_file(str(ROOT / "demo/study.py"), default_timeout=60).run()
        app.selectbox(key="reader").set_value(reader).run()
        assert app.query_params["reader"] == reader  # a reload asks no more
        return app

    return open_page


def words(app):
    kinds = (app.markdown, app.title, app.warning, app.error)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def read(app, answer="yes", confidence=70):
    app.radio[0].set_value(answer)
    app.radio[1].set_value(confidence)
    return app.button[0].click().run()


def readings(tmp_path, reader="anna"):
    return pd.read_csv(tmp_path / f"readings/{reader}.csv")


def test_nothing_is_told_before_the_reading_is_on_disk_nor_ever_alone(begin, tmp_path, world):
    app, n = begin(), 0
    while "Thank you" not in words(app):
        assert not app.exception
        said = SAYS.search(words(app).replace("now that you know what the system says", ""))
        if said:  # only where the reading before it is the first of this case
            last = readings(tmp_path).iloc[-1]
            assert last["step"] == "first"
            assert last["arm"] != "alone"
            assert f"Case {last['position']} of 6" in words(app)
            deferred = last["arm"] == "deferral" and last["deferred"] == 1
            assert (answers.DEFERRED in words(app)) == deferred
            assert ("estimated chance" in words(app)) != deferred
        read(app)
        n += 1
        assert len(readings(tmp_path)) == n
    done = readings(tmp_path)
    assert done.groupby(["arm", "step"]).size().to_dict() == {
        ("alone", "final"): 2,
        **{(arm, step): 2 for arm in ("deferral", "system") for step in ("first", "final")},
    }
    table = cases.collect(Disk(world)).table.set_index("image_id").loc[done["case"]]
    assert done["y_true"].tolist() == table["y_true"].tolist()
    assert done["deferred"].astype(bool).tolist() == table["deferred"].tolist()
    assert done["confidence"].eq(70).all()
    assert done["seconds"].ge(0).all()


def test_a_killed_session_goes_on_where_it_was(begin, tmp_path):
    app = begin()
    for _ in range(3):
        read(app)
    path = tmp_path / "readings/anna.csv"
    whole, shown = path.read_bytes(), app.title[0].value
    path.write_bytes(whole + b"anna,system,fir")  # what a kill may leave of a row
    again = begin()
    assert again.title[0].value == shown
    read(again)
    assert path.read_bytes().startswith(whole)
    assert len(readings(tmp_path)) == 4


def test_the_second_step_begins_with_the_first_reading_and_may_change_it(begin, tmp_path):
    app = begin()
    while not (tmp_path / "readings/anna.csv").exists() or readings(tmp_path)["step"].iloc[-1] != "first":
        read(app, "no", 20)
    assert (app.radio[0].value, app.radio[1].value) == ("no", 20)
    read(app, "yes", 90)
    assert readings(tmp_path)[["step", "answer"]].iloc[-2:].to_numpy().tolist() == [["first", "no"], ["final", "yes"]]


def test_both_questions_must_be_answered(begin, tmp_path):
    app = begin()
    app.button[0].click().run()
    assert "Answer both questions." in words(app)
    assert not (tmp_path / "readings").exists()


def test_two_windows_write_a_reading_once(begin, tmp_path):
    first, second = begin(), begin()
    read(first)
    read(second)
    assert len(readings(tmp_path)) == 1


def test_the_next_session_waits_for_the_washout(begin, tmp_path):
    app = begin(design="crossover", days=14)
    while "Session 1 is done" not in words(app):
        read(app)
    done = readings(tmp_path)
    assert done["case"].nunique() == done["position"].max() == 6
    ago = datetime.now(UTC) - timedelta(days=15)
    done.assign(time=ago.isoformat(timespec="seconds")).to_csv(tmp_path / "readings/anna.csv", index=False)
    app = begin(design="crossover", days=14)
    assert app.title[0].value == "Case 7 of 18"
    while app.title[0].value != "Case 8 of 18":  # a session that has begun goes on
        read(app)
        assert "is done" not in words(app)


def test_readings_of_another_plan_are_not_gone_on_with(begin, tmp_path):
    read(begin())
    other = readings(tmp_path).assign(case="another")
    other.to_csv(tmp_path / "readings/anna.csv", index=False)
    assert "anna.csv: row 2 is not the reading that the plan has there" in words(begin())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("positive: 3", "positive: 300"), r"study.positive is 300: the test split has \d+ such patients"),
        (("design: split", "design: both"), "study.design is 'both'"),
        (("ben", "anna"), "readers names one of them twice"),
        (("washout_days: 0", "washout_days: 7"), "washout_days must be 0 in a split design"),
        (("arms: [alone, system, deferral]", "arms: [alone, model]"), "study.arms.1 is 'model'"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(world, tmp_path, change, said):
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.format(design="split", days=0).replace(*change), encoding="utf-8")
    with pytest.raises(ValueError, match=said) as error:
        session.plan(path, cases.collect(Disk(world)))
    assert str(error.value).startswith(str(path))


@pytest.fixture
def served(world, tmp_path):
    text = PLAN.format(design="split", days=0).replace("readings", str(tmp_path / "readings"))
    (tmp_path / "plan.yaml").write_text(text, encoding="utf-8")
    yield from serve(world, "demo/study.py", TMV_STUDY=str(tmp_path / "plan.yaml"))


@pytest.mark.parametrize(("width", "colours"), [(1280, "light"), (390, "dark")])
def test_in_a_browser_nothing_is_sent_before_the_reading_is_on_disk(served, opened, tmp_path, width, colours):
    page = opened(f"{served.url}?reader=anna", width=width, colours=colours)
    for position in range(1, 7):
        page.get_by_role("heading", name=f"Case {position} of 6", exact=True).wait_for()
        settled(page)
        assert not re.search(r"estimated chance|No answer: read|person|NORMAL", told(page))
        assert overflows(page) == 0
        assert serious(page) == []
        page.get_by_text("no pneumonia", exact=True).click()
        page.get_by_text("30", exact=True).click()
        page.get_by_role("button", name="Save").click()
        after = page.get_by_text("now that you know what the system says")
        after.or_(page.get_by_role("heading", name=f"Case {position + 1} of 6", exact=True)).first.wait_for()
        if readings(tmp_path)["step"].iloc[-1] == "first":
            break
    settled(page)
    assert len(readings(tmp_path)) == position
    assert re.search(r"estimated chance|No answer: read", told(page))
    assert serious(page) == []

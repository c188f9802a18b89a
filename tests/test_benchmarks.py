import pytest

from benchmarks.__main__ import SUBJECTS, main, table
from benchmarks.calibration import calls, public
from benchmarks.calibration import table as predictions
from benchmarks.measure import Measured, side_by_side
from tmv_lib.calibration import calibrators, corp, errors, prevalence, slope


@pytest.mark.parametrize(
    ("value", "missed"), [(29.9, True), (30, False), (40, False), (40.1, True), (float("nan"), True)]
)
def test_a_bound_is_missed_outside_it(value, missed):
    number = Measured("faster by", value, "times", at_least=30, at_most=40)
    assert number.missed == missed
    assert ("**missed**" in table("Heading", [number])) == missed


def test_calls_take_turns_and_the_best_repeat_counts(monkeypatch):
    clock = iter([0, 5, 10, 11, 20, 22, 30, 37])
    monkeypatch.setattr("benchmarks.measure.perf_counter", lambda: next(clock))
    turns = []
    ours, theirs = side_by_side(lambda: turns.append("ours"), lambda: turns.append("theirs") or 3, repeats=2)
    assert turns == ["ours", "theirs"] * 2
    assert (ours.seconds, theirs.seconds) == (2, 1)
    assert theirs.result == 3


def test_every_public_function_of_calibration_is_measured(monkeypatch):
    monkeypatch.setattr("benchmarks.calibration.CASES", 10)
    called = {function for _, function, _ in calls(predictions())}
    assert called == set(public().values())
    assert {errors.smooth_calibration_error, calibrators.choose_calibrator, slope.calibration_slope} <= called
    assert {corp.corp_curve, prevalence.prevalence_by_confusion} <= called


def test_a_parameter_without_a_meaning_is_refused():
    with pytest.raises(ValueError, match="y_prob"):
        list(calls({"y_true": [0, 1]}))


@pytest.mark.parametrize(("value", "code"), [(30, 0), (29, 1)])
def test_the_page_keeps_its_prose_and_a_miss_fails(tmp_path, monkeypatch, value, code):
    page = tmp_path / "speed.md"
    page.write_text("# Speed\n\nProse.\n\n<!-- make bench writes what follows -->\n\nold\n", encoding="utf-8")
    monkeypatch.setattr("benchmarks.__main__.PAGE", page)
    monkeypatch.setattr("benchmarks.__main__.PACKAGES", ("numpy",))
    monkeypatch.setattr(
        "benchmarks.__main__.in_own_process", lambda subject: (subject, [Measured("x", value, "s", at_least=30)])
    )
    assert main() == code
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Speed\n\nProse.\n\n<!--")
    assert "old" not in text
    assert text.count("| x |") == len(SUBJECTS)

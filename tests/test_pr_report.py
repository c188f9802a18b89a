"""What a pull request is told of its figures."""

import json

from commands.pr_report import ENSEMBLE, SUMMARY, figures, report, rows, weight
from tmv_lib.statistics.estimate import Estimate


def test_a_change_is_noise_where_each_value_lies_in_the_others_interval():
    old = Estimate(0.5, 0.4, 0.6)
    assert weight(old, Estimate(0.6, 0.5, 0.7)) == "within noise"
    assert weight(old, Estimate(0.61, 0.5, 0.72)) == "**beyond noise**"
    assert weight(old, Estimate(0.59, 0.55, 0.63)) == "**beyond noise**"  # the new interval excludes the old value
    assert weight(old, Estimate(0.6)) == weight(Estimate(absent="gone"), old) == "no interval"


def test_the_summary_takes_its_intervals_from_the_figures_of_the_policy():
    files = {
        SUMMARY: {"summary": {"verdict": "use", "coverage": 0.4, "ece": 0.05}},
        ENSEMBLE: {"deferral": {"coverage": 0.4, "coverage_low": 0.3, "coverage_high": 0.5}},
    }
    found = figures(lambda path: json.dumps(files[path]))
    assert found["coverage"] == Estimate(0.4, 0.3, 0.5)
    assert found["verdict"] == Estimate("use")
    assert found["auroc"].value is None
    assert figures(lambda path: "")["coverage"].value is None  # of a commit without metrics


def test_figures_that_changed_have_a_row():
    old = {"coverage": Estimate(0.4, 0.3, 0.5), "auroc": Estimate(0.9, 0.8, 1.0)}
    new = {"coverage": Estimate(0.7, 0.6, 0.8), "auroc": Estimate(0.9, 0.8, 1.0), "verdict": Estimate("use")}
    assert rows(old, new) == [
        "| coverage | 0.4 (0.3 to 0.5) | 0.7 (0.6 to 0.8) | **beyond noise** |",
        "| verdict | not measured | use | no interval |",
    ]


def test_the_report_says_that_nothing_changed_and_shows_the_pictures():
    text = report({}, {}, {"Net benefit": "x.png"}, "0123456789")
    assert "No figure of the summary changed." in text
    assert "`dvc metrics diff 0123456`" in text
    assert "![Net benefit](x.png)" in text

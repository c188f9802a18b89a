"""What a pull request is told of its figures."""

import re

from commands.pr_report import Value, report, rows, weight


def change(old, new):
    return {"old": old, "new": new, "diff": None}


def with_interval(name, old, new):
    """A figure with its interval, each (value, low, high)."""
    return {f"{name}{suffix}": change(*pair) for suffix, *pair in zip(("", "_low", "_high"), old, new, strict=True)}


def test_a_change_is_noise_where_each_value_lies_in_the_others_interval():
    old = Value(0.5, 0.4, 0.6)
    assert weight(old, Value(0.6, 0.5, 0.7)) == "within noise"
    assert weight(old, Value(0.61, 0.5, 0.72)) == "**beyond noise**"
    assert weight(old, Value(0.59, 0.55, 0.63)) == "**beyond noise**"  # the new interval excludes the old value
    assert weight(old, Value(0.6, None, None)) == weight(Value(None, None, None), old) == "no interval"


def test_changed_figures_of_the_summary_have_a_row_and_bounds_have_none():
    summary = with_interval("coverage", (0.4, 0.3, 0.5), (0.7, 0.6, 0.8)) | with_interval(
        "auroc", (0.9,) * 3, (0.9,) * 3
    )
    summary |= {"rate_low": change(1, 2), "new": {"new": "use"}}
    changes = {"metrics/summary.json": summary, "metrics/ensemble.json": {"deferral.coverage": change(0.4, 0.7)}}
    assert rows(changes) == [
        "| coverage | 0.4 (0.3 to 0.5) | 0.7 (0.6 to 0.8) | **beyond noise** |",
        "| new | absent | use | no interval |",
        "| rate_low | 1 | 2 | no interval |",
    ]


def test_without_a_summary_the_policy_stands_for_it():
    changes = {"metrics/ensemble.json": {"deferral.coverage": change(0.4, 0.7), "deferral.at.0.5": change(1, 2)}}
    assert rows(changes) == ["| deferral.coverage | 0.4 | 0.7 | no interval |"]


def test_the_report_counts_what_it_leaves_out_and_shows_the_pictures():
    text = report({"metrics/site.json": {"a": change(1, 2), "b": change(1, 1)}}, {"Net benefit": "x.png"}, "0123456789")
    assert "No figure of the summary changed." in text
    assert re.search(r"Of all metrics 1 values? differ", text)
    assert "![Net benefit](x.png)" in text

"""What each diagram of the report shows, and the sentence that reads it with this run's own figures."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from tmv_lib.card.answers import LOOKS, better_than_margin, blamed, calibrated, groups_of
from tmv_lib.card.policy import MOST_MEMBERS
from tmv_lib.card.words import number, per_thousand, share
from tmv_lib.pipeline.record import Figures
from tmv_lib.report.drawing import BY_LOT, COLOURS, GREY, PALE, POLICY, Look, curves, draw, intervals, steps

Metrics = Mapping[str, Figures]


class Diagram(NamedTuple):
    """A question, the picture that answers it (an SVG element), and the sentence that reads the picture."""

    question: str
    svg: str
    reading: str


def diagrams(metrics: Mapping[str, Figures | None], root: Path) -> list[Diagram]:
    """Every diagram of the run below root whose stage has run and left rows to draw.

    metrics: of each stage. Raises ValueError naming a metric that is not there.
    """
    run = {stage: figures for stage, figures in metrics.items() if figures is not None}
    made = []
    for stage, name, of_rows in DIAGRAMS:
        path = root / f"plots/{stage}/{name}.csv"
        if stage in run and path.is_file() and not (rows := pd.read_csv(path)).empty:
            made += of_rows(rows, run)
    return made


def reading(figures: Metrics) -> dict[str, Figures]:
    """What is known of how each member reads, by its name, the first MOST_MEMBERS."""
    first = figures["baseline"]["baseline"]
    others = groups_of(figures["diversity"]["diversity"]) if "diversity" in figures else {}
    members = {first["member"]: first} | {name: one for name, one in others.items() if name != "together"}
    return dict(list(members.items())[:MOST_MEMBERS])


def _risk_coverage(rows: pd.DataFrame, run: Metrics) -> list[Diagram]:
    found = run["ensemble"]["deferral"]
    wrong_of_all = found["errors_deciding_all"] / found["n"]

    looks: dict[str, Look] = {
        "random": BY_LOT,
        "oracle": {"color": GREY, "linestyle": "--", "label": "errors handed over first"},
        "plain margin": {"color": COLOURS[1], "linewidth": 1.1, "label": "by distance from 0.5"},
        "this policy": POLICY,
    }

    def paint(axes: Axes) -> None:
        curves(axes, rows, "coverage", "selective_risk", looks, drawstyle="steps-pre")
        if found["coverage"]:
            axes.plot(found["coverage"], found["selective_risk"], "o", color=COLOURS[0], markersize=7, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, max(0.01, min(1, 2.2 * wrong_of_all))))

    coverage = found.estimate("coverage")
    left = f"Of these {share(found.estimate('selective_risk'))} are wrong" if coverage.value else "It decides no case"
    text = (
        f"From right to left ever more of the least certain cases go to a doctor. The policy (dot) decides"
        f" {share(coverage)} of the cases. {left}; if it decided all, at the cut-off that these prices ask for,"
        f" {100 * wrong_of_all:.1f} % would be. The lower the line, the better it knows which cases it gets wrong."
    )
    svg = draw(paint, x="Share of cases that it decides", y="Share of these that is wrong")
    return [Diagram("What does handing over the least certain cases buy?", svg, text)]


def _threshold(rows: pd.DataFrame, run: Metrics) -> list[Diagram]:
    found = run["ensemble"]["deferral"]
    doctor, best = found["doctor_reads_all_cost"], found["cost_optimal"]

    looks: dict[str, Look] = {
        "test, random": BY_LOT,
        "validation": {"color": COLOURS[1], "linewidth": 1.1, "label": "this policy on val"},
        "test": {**POLICY, "label": "this policy on test"},
    }

    def paint(axes: Axes) -> None:
        axes.axhline(doctor, color=GREY, linestyle="--", linewidth=1.2, label="a doctor reads all")
        curves(axes, rows, "threshold", "failure_cost", looks)
        axes.axvline(found["threshold"], color="#222", linewidth=1)
        axes.plot(found["threshold"], found["failure_cost"], "o", color=COLOURS[0], markersize=7, clip_on=False)
        axes.set(xlim=(0, 1))
        axes.set_ylim(bottom=0)

    prices = found["cost"]
    text = (
        f"A missed positive costs {prices['false_negative']:g}, a false alarm {prices['false_positive']:g}, a doctor's"
        f" review {prices['review']:g}. At the certainty that it must reach, {found['threshold']:.2f} (line), a case"
        f" costs {number(found.estimate('failure_cost'))}; a doctor who reads all costs {doctor:.3f}. On val"
        f" {best['threshold']:.2f} was cheapest. Take no threshold from the line of test: it would be fitted to it."
    )
    return [
        Diagram("What would another threshold cost?", draw(paint, x="Certainty asked for", y="Cost per case"), text)
    ]


def _net_benefit(rows: pd.DataFrame, run: Metrics) -> list[Diagram]:
    found = run["ensemble"]["deferral"]
    prices = found["cost"]
    at = prices["false_positive"] / (prices["false_negative"] + prices["false_positive"])

    looks: dict[str, Look] = {
        "nobody called positive": {"color": GREY, "linestyle": ":", "label": "all called negative"},
        "all called positive": {"color": GREY, "linestyle": "--", "label": "all called positive"},
        "ensemble decides all": {"color": COLOURS[1], "linewidth": 1.1, "label": "it decides all"},
        "policy": POLICY,
    }

    def paint(axes: Axes) -> None:
        curves(axes, rows, "threshold_prob", "net_benefit", looks)
        axes.axvline(at, color="#222", linewidth=1)
        top = max(0.01, rows["net_benefit"].max())
        axes.set(xlim=(0, 1), ylim=(-0.25 * top, 1.08 * top))

    text = (
        f"Higher is better: true positives per case, less the false alarms at the price of the threshold. Where a"
        f" missed positive costs {prices['false_negative'] / prices['false_positive']:g} false alarms, one calls from a"
        f" probability of {at:.2f} on (line). There, of 1,000 cases, the policy is worth"
        f" {per_thousand(found.estimate('net_benefit'))} true positives, deciding all cases"
        f" {per_thousand(found.estimate('net_benefit_deciding_all'))}, calling none positive 0."
    )
    svg = draw(paint, x="Probability from which one calls positive", y="Net benefit")
    return [Diagram("Is it better than calling all, or none, positive?", svg, text)]


def _reliability(rows: pd.DataFrame, run: Metrics) -> list[Diagram]:
    made = []
    for name in list(dict.fromkeys(rows["series"]))[:MOST_MEMBERS]:
        before, after = (rows[(rows["series"] == name) & (rows["phase"] == phase)] for phase in ("before", "after"))

        def paint(axes: Axes, before: pd.DataFrame = before, after: pd.DataFrame = after) -> None:
            band = {"color": PALE, "linewidth": 0, "label": "where calibrated ones stay"}
            axes.fill_between(after["y_prob"], after["low"], after["high"], **band)  # type: ignore[arg-type]
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
            steps(axes, before, "y_prob", "recalibrated", color=COLOURS[1], linewidth=1.1, label="as it came")
            steps(axes, after, "y_prob", "recalibrated", color=COLOURS[0], label="calibrated on val")
            _limit(axes, before["y_prob"], after["y_prob"], before["recalibrated"], after["recalibrated"])

        found = run["calibration"]["calibration"][name]
        text = (
            f"On the diagonal a probability is right. The line of a calibrated model strays, by chance alone, within"
            f" the grey band: at any one place in 95 of 100 samples of this size. As it came:"
            f" {calibrated(found['before'])}. After calibration on val: {calibrated(found['after'])}; calibration slope"
            f" {number(found['after'].estimate('slope'))}, 1 is right, less is too sure."
        )
        svg = draw(paint, x="Probability that it gives", y="Share that is positive")
        made.append(Diagram(f"When {name} says 87 %, is it right 87 % of the time?", svg, text))
    return made


def _limit(axes: Axes, *shown: pd.Series) -> None:
    """From 0 to the largest probability that is shown: those of a rare finding are all small."""
    top = min(1.0, 1.05 * max(float(one.max()) for one in shown))
    axes.set(xlim=(0, top), ylim=(0, top))


def _calibrators(rows: pd.DataFrame, run: Metrics) -> list[Diagram]:
    chosen = (f"{one['calibrator']['name']} for {name}" for name, one in run["calibration"]["calibration"].items())
    text = (
        f"Log loss on patients of val that the calibrator has not seen, less that of logistic, with one standard error;"
        f" left is better. Another one is taken where its whole bar lies left of 0. Taken: {', '.join(chosen)}."
    )
    svg = intervals(rows, "excess", "name", at=0, x="Log loss above that of logistic calibration")
    return [Diagram("Which calibrator?", svg, text)]


def _roc(rows: pd.DataFrame, run: Metrics) -> list[Diagram]:
    members = reading(run)
    if rows["series"].nunique() < len(members):
        return []  # the other table has all of them

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="guessing")
        for (name, one), colour in zip(members.items(), COLOURS, strict=False):
            steps(axes, rows[rows["series"] == name], "false_positive_rate", "sensitivity", color=colour, label=name)
            half = one["at_half"]
            axes.plot(1 - half["specificity"], half["sensitivity"], "o", color=colour, markersize=6, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1))

    ranks = "; ".join(f"{name} {number(one.estimate('auroc'))}" for name, one in members.items())
    halves = "; ".join(
        f"{name} finds {share(one['at_half'].estimate('sensitivity'))} of the positives and raises a false alarm on"
        f" {100 * (1 - one['at_half']['specificity']):.1f} % of the negatives"
        for name, one in members.items()
    )
    text = (
        f"AUROC, how often a random positive gets a higher score than a random negative (0.5 is guessing): {ranks}. At"
        f" a probability above 0.5 (dot) {halves}."
    )
    svg = draw(paint, x="False alarms among negatives (1 - specificity)", y="Positives found (sensitivity)")
    return [Diagram("Does it rank positives above negatives?", svg, text)]


def _precision_recall(rows: pd.DataFrame, run: Metrics) -> list[Diagram]:
    one = run["baseline"]["baseline"]
    name, half, prevalence = one["member"], one["at_half"], one["n_positive"] / one["n"]

    def paint(axes: Axes) -> None:
        axes.axhline(prevalence, color=GREY, linestyle=":", label="guessing")
        steps(axes, rows, "sensitivity", "precision", color=COLOURS[0], label=name)
        if half.estimate("precision").value is not None:
            axes.plot(half["sensitivity"], half["precision"], "o", color=COLOURS[0], markersize=6, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1.02))

    text = (
        f"At a probability above 0.5 (dot) {share(half.estimate('precision'))} of the positive calls are right."
        f" Averaged over all cut-offs (average precision) it is {number(one.estimate('average_precision'))}; guessing"
        f" would have {prevalence:.3f}, the share of positives."
    )
    svg = draw(paint, x="Positives found (sensitivity)", y="Positive calls that are right")
    return [Diagram(f"How many of {name}'s positive calls are right?", svg, text)]


def _detectors(rows: pd.DataFrame, run: Metrics) -> list[Diagram]:
    if set(rows["signal"]) == {"margin"}:
        return []  # nothing to compare it with
    parts = [
        f"{name}: the margin {number(one['margin'].estimate('adjusted_error_auroc'))}, {better_than_margin(one)}"
        for name, one in groups_of(run["uncertainty"]["uncertainty"]).items()
    ]
    text = (
        f"How often a wrong answer is doubted more than a right one, among cases called alike; 0.5 is guessing, 1 would"
        f" find every error. The margin is the distance of the probability from 0.5; disagreement is how far the models"
        f" lie apart, and mutual information another measure of that. {'. '.join(parts)}."
    )
    svg = intervals(rows, "auroc", "signal", at=0.5, x="AUROC of finding errors")
    return [Diagram("Which doubt finds the errors?", svg, text)]


def _logits(rows: pd.DataFrame, run: Metrics) -> list[Diagram]:
    site = run["site"]["site"]

    def paint(axes: Axes) -> None:
        for label, colour in (("negative", COLOURS[0]), ("positive", COLOURS[1])):
            for place, called, line in (("source", "val and cal", "--"), ("site", "test", "-")):
                own = rows[rows["series"] == f"{label}, {place}"]
                look: dict[str, Any] = {"color": colour, "linestyle": line, "label": f"{label}, {called}"}
                steps(axes, own, "logit", "share", drawstyle="steps-post", **look)
        axes.set(ylim=(0, 1))

    text = (
        f"Where the full line of test leaves the dashed line of its class, test scores otherwise than val and cal did."
        f" {LOOKS[site['shift']['name']]}"
    )
    svg = draw(paint, x="Score as it came (logit)", y="Share of cases below")
    return [Diagram("Is test like the place that it was fitted to?", svg, text)]


def _site_reliability(rows: pd.DataFrame, run: Metrics) -> list[Diagram]:
    site, first = run["site"]["site"], rows["series"].iloc[0]
    own = rows[rows["series"] == first]

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        for k, (phase, called) in enumerate((("source", "cal"), ("site, as shipped", "test"))):
            part = own[own["phase"] == phase]
            x = part["confidence"] + 0.006 * (2 * k - 1)  # bars beside each other
            axes.vlines(x, part["low"], part["high"], color=COLOURS[1 - k], linewidth=1.2)
            axes.plot(x, part["accuracy"], "o", color=COLOURS[1 - k], markersize=4.5, label=called)
        _limit(axes, own["confidence"], own["high"])

    update = site[first]["update"]
    does = {
        "keep": "ask for no update: the probabilities stay as they are",
        "intercept": f"ask for a shift of the logit by {update['intercept']:+.2f}",
        "both": f"ask for a logit of {update['intercept']:+.2f} + {update['slope']:.2f} times the old one",
    }[update["name"]]
    text = (
        f"Each dot is a tenth of the scale with its 95 % interval; few cases give long bars. After calibration on"
        f" val {blamed(site) or 'nothing was tested'}. The labels of test {does}.{_bought(site)}"
    )
    svg = draw(paint, x=f"Probability that {first} gives", y="Share that is positive")
    return [Diagram("Do its probabilities hold on test as they did on cal?", svg, text)]


def _bought(site: Figures) -> str:
    change = site["learning_curve"]["change"]["nll"] if "change" in site["learning_curve"] else {}
    if not change:
        return ""
    n, one = list(change.items())[-1]
    if not any(value for _, value in one.items()):
        return f" Labels of {n} local patients change nothing in the log loss."
    ends = f"{one['median']:+.3f}, {one['low']:+.3f} to {one['high']:+.3f} in 90 of 100 draws"
    return f" With labels of {n} local patients the log loss changes by {ends}."


Draws = Callable[[pd.DataFrame, Metrics], list[Diagram]]
# By stage and table, in the order of the page: what is decided, then the probabilities, the ranking, and the place.
DIAGRAMS: tuple[tuple[str, str, Draws], ...] = (
    ("ensemble", "risk_coverage", _risk_coverage),
    ("ensemble", "threshold", _threshold),
    ("ensemble", "net_benefit", _net_benefit),
    ("calibration", "corp", _reliability),
    ("calibration", "calibrators", _calibrators),
    ("diversity", "roc", _roc),
    ("baseline", "roc", _roc),
    ("baseline", "precision_recall", _precision_recall),
    ("uncertainty", "detectors", _detectors),
    ("site", "logits", _logits),
    ("site", "reliability", _site_reliability),
)

import hashlib
import re
import shutil
import subprocess
from copy import deepcopy
from html import escape, unescape
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tmv_lib.card.card import (
    QUESTIONS,
    Picture,
    Source,
    as_html,
    as_markdown,
    card,
    digest,
    figure,
    of_hundred,
    read_stages,
)
from tmv_lib.card.facts import NOT_MEASURED, Facts
from tmv_lib.deferral.verdict import RIVALS
from tmv_lib.pipeline.params import read

ROOT = Path(__file__).parents[1]
MEMBERS = {"one": "densenet121, seed 1", "two": "resnet50, seed 1"}


def between(name: str, value: float) -> dict:
    return {name: value, f"{name}_low": value - 0.01, f"{name}_high": value + 0.01}


def of_member() -> dict:
    ece = {"positive_class_ece_uniform": {"ece": 0.0623, "noise_floor_p95": 0.0551}}
    detector = between("adjusted_error_auroc", 0.7801) | between("gain_over_margin", 0.033) | {"over_margin": "better"}
    claim = {"measure": "rank_correlation", "answer": "not supported", "over_margin": "no worthwhile gain"}
    unstable = between("adjusted_error_auroc", 0.551) | {"rests_on": "called_positive"}
    return {
        "calibration": {"calibrator": {"name": "platt"}, "before": ece, "after": ece | between("in_the_large", -0.52)},
        "uncertainty": {
            "n_errors": 61,
            "margin": between("adjusted_error_auroc", 0.7797),
            "distance": detector,
            "quadrants": {"confident_error": {"n": 19}},
        },
        "explanations": {"verdict": {"usable": False, "because_of": "deletion"}} | between("border_flip_rate", 0.134),
        "stability": {"errors": {"claim": claim, "rank_correlation": unstable}},
    }


@pytest.fixture
def metrics() -> dict:
    """What the metrics files of a run hold, as far as the card reads them."""
    found = {key: {name: of_member()[key] for name in MEMBERS} for key in of_member()}
    group = {"n": 50, "errors_left": 4, "words": "deferral narrows the gap"} | between("coverage", 0.9)
    deferral = {"n": 418, "n_positive": 167, "n_patients": 270, "threshold": 0.3, "words": "deferral can pay"}
    deferral |= {"deferral_rate": 0.172, "errors_deciding_all": 93, "errors_left": 60, "break_even_review_price": 0.625}
    for name, value in (("coverage", 0.828), ("selective_risk", 0.1734), ("failure_cost", 0.292)):
        deferral |= between(name, value)
    for prefix in ("decided", "deciding_all"):
        for place, name in enumerate(("sensitivity", "specificity", "precision", "negative_predictive_value")):
            deferral |= between(f"{prefix}_{name}", 0.928 - 0.1 * place)
    for rival in ("baseline_decides_all", "baseline_at_half_decides_all", "ensemble_decides_all"):
        deferral[rival] = between("cost", 0.333) | between("reduction", 0.122)
    for name in ("random_deferral", "margin_deferral", "plain_margin_deferral", "oracle_deferral", "doctor_reads_all"):
        deferral[f"{name}_cost"] = 0.25
    counts = (142, 11, 14, 49, 144, 58)
    names = [f"{truth}_{end}" for truth in ("positive", "negative") for end in ("called_positive", "called_negative")]
    order = [*names[:2], "positive_deferred", *names[2:], "negative_deferred"]
    deferral |= {
        "cost": {"false_negative": 5.0, "false_positive": 1.0, "review": 0.25},
        "cost_optimal": {"threshold": 0.45},
        "of_the_cases": dict(zip(order, counts, strict=True)),
        "at_prevalence": {"0.05": between("precision", 0.161) | between("negative_predictive_value", 0.995)},
        "calibration_of_decided": {"decided": {"ece": 0.0764, "noise_floor_p95": 0.0543, "p_value": 0.001}},
        "subgroups": {
            "y_true: positive": group | between("selective_risk", 0.072),
            "ward: b": group | between("selective_risk", 0.4),
        },
        "failures": {"spurious feature": between("caught", 0.186)},
        "learned": {"used": False},
        "threshold_from": "params",
        "chow_threshold": 0.7,
        "chow_review_price": 0.583,
        "deferral_can_pay": True,
        "out_of_distribution": 0.0431,
    }
    standing = {"verdict": "holds", "n_patients": 93.5, "errors": 2.5, "low": 0.011, "high": 0.063}
    promise = {"limit": 0.1, "level": 0.05, "p_value": 0.01, "n_patients": 101.0, "errors": 3.0}
    guarantee = {
        "delta": 0.1,
        "lapses": False,
        "missed_positives": promise | {"status": "kept_above", "threshold": 0.623, "on_test": standing},
        "false_alarms": promise | {"status": "not_shown", "patients_wanted": 1234},
        "sensitivity": promise | {"status": "vacuous"},
    }
    against = {name: {"cost": 0.25} | between("difference", -0.0511) for name in RIVALS}
    good = {"prevalence": 0.4, "called_negative": {"share": 0.3, "wrong": 0.02}}
    good["called_positive"] = {"share": 0.35, "wrong": 0.0812}
    verdict = {
        "answer": "use",
        "because_of": "doctor_reads_all",
        "is_dearer": False,
        "cost": 0.1989,
        "good_for": good,
        "against": against,
    }
    problems = {"duplicate": {"images": 0, "groups": 0}, "near_duplicate": {"images": 7, "groups": 1}}
    return found | {
        "deferral": deferral,
        "guarantee": guarantee,
        "verdict": verdict,
        "ensemble": {"combine": "mean_logit", "in_use": between("auroc", 0.9128)},
        "prepare": {"problems": problems, "splits": {"test": {"images": 418, "positives": 167, "patients": 270}}},
        "site": {"shift": {"name": "ward", "words": "Test is darker."}},
        "failures": {"ensemble": {"n_errors": 73, "spurious feature": {"n": 43} | between("share", 0.589)}},
        "out_of_distribution": {"foreign": {"noise": {"refused": 1.0}, "rotated_90": {"refused": 0.9}}},
        "baseline": {},
        "diversity": {},
    }


@pytest.fixture
def facts() -> Facts:
    return read(ROOT / "card.yaml", "card", Facts)


def picture() -> Picture:
    file = BytesIO()
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(file, "png")
    return Picture(file.getvalue(), "spurious feature: negative, p 0.71, decided", "../failures/cases/spurious.png")


def told(metrics: dict, facts: Facts, members: dict[str, str] = MEMBERS) -> tuple[str, str]:
    sources = [Source("calibration", {"bins": 15, "knob": None}, {"metrics/calibration.json": "0123456789abcdef"})]
    made = card(metrics, facts, members=members, sources=sources, pictures=[picture()])
    return as_html(made), as_markdown(made)


def test_a_hundred_are_a_hundred():
    rng = np.random.default_rng(0)
    for _ in range(200):
        counts = dict(enumerate(rng.integers(0, rng.integers(1, 400), size=6)))
        total = sum(counts.values())
        found = of_hundred(counts)
        assert sum(found.values()) == (100 if total else 0)
        assert all(abs(found[name] - 100 * count / max(total, 1)) < 1 for name, count in counts.items())
    assert of_hundred({"a": 1, "b": 1, "c": 1}) == {"a": 34, "b": 33, "c": 33}


def test_a_field_has_three_states():
    assert figure(between("risk", 0.25), "risk") == "25.0 % (24.0 to 26.0)"
    assert figure({"risk": 0.25}, "risk", percent=False) == "0.250"
    assert figure({"risk_absent": "nobody is decided"}, "risk") == "not applicable because nobody is decided"
    assert figure({}, "risk") == NOT_MEASURED


CHANGES = [
    (("deferral", "selective_risk"), 0.3456, "34.6 %"),
    (("deferral", "threshold"), 0.777, "0.777"),
    (("deferral", "decided_sensitivity"), 0.1234, "12.3 %"),
    (("deferral", "at_prevalence", "0.05", "precision"), 0.2345, "23.4 %"),
    (("deferral", "cost", "false_negative"), 17.0, "about 17"),
    (("deferral", "baseline_decides_all", "reduction"), -0.0456, "-4.6 %"),
    (("deferral", "subgroups", "ward: b", "coverage"), 0.4321, "43.2 %"),
    (("deferral", "failures", "spurious feature", "caught"), 0.9753, "97.5 %"),
    (("deferral", "learned", "used"), True, "the margin, lowered by doubts"),
    (("deferral", "out_of_distribution"), 0.0678, "6.8 %"),
    (("deferral", "threshold_from"), "prices", "what these prices ask for"),
    (("deferral", "deferral_can_pay"), False, "you hand cases to a doctor to save cost"),
    (("ensemble", "in_use", "auroc"), 0.6543, "0.654"),
    (("verdict", "answer"), "do_not_use", "Do not use it for"),
    (("verdict", "cost"), 0.1777, "0.178 per case"),
    (("verdict", "good_for", "called_positive", "wrong"), 0.0777, "7.8 %"),
    (("guarantee", "missed_positives", "threshold"), 0.512, "a certainty of 0.51 on"),
    (("guarantee", "missed_positives", "on_test", "verdict"), "broken", "on test it is broken"),
    (("guarantee", "false_alarms", "patients_wanted"), 4321, "4,321 calibration patients"),
    (("calibration", "one", "before", "positive_class_ece_uniform", "ece"), 0.1357, "0.136"),
    (("calibration", "two", "after", "in_the_large"), 1.23, "+1.23"),
    (("uncertainty", "two", "margin", "adjusted_error_auroc"), 0.5432, "0.543"),
    (("uncertainty", "two", "distance", "gain_over_margin"), 0.047, "distance (+0.047, 0.023 to 0.043)"),
    (("uncertainty", "one", "distance", "over_margin"), "no worthwhile gain", "no worthwhile gain: distance (+0.033"),
    (("out_of_distribution", "foreign", "rotated_90", "refused"), 0.4321, "all but rotated 90 43 %"),
    (("explanations", "two", "verdict"), {"usable": True, "because_of": ""}, "deserve a look"),
    (("explanations", "two", "verdict", "because_of"), "insertion", "insertion is no better than random"),
    (("explanations", "one", "border_flip_rate"), 0.3141, "31.4 %"),
    (("stability", "one", "errors", "claim", "answer"), "the opposite", "the opposite, adjusted AUROC 0.551"),
    (
        ("stability", "one", "errors", "rank_correlation", "adjusted_error_auroc"),
        0.512,
        "not supported, adjusted AUROC 0.512",
    ),
    (("stability", "one", "errors", "rank_correlation", "rests_on"), "called_negative", "negative calls alone"),
    (("failures", "ensemble", "spurious feature", "share"), 0.2718, "27.2 %"),
    (("prepare", "problems", "duplicate", "images"), 31, "duplicate 31"),
    (("site", "shift", "words"), "Test is brighter.", "Test is brighter."),
]


@pytest.mark.parametrize(("place", "value", "seen"), CHANGES)
def test_the_card_follows_its_metrics(metrics, facts, place, value, seen):
    before = told(metrics, facts)
    assert not any(seen in unescape(text) for text in before)
    changed = deepcopy(metrics)
    *path, name = place
    entry = changed
    for key in path:
        entry = entry[key]
    assert name in entry
    entry[name] = value
    assert all(seen in unescape(text) for text in told(changed, facts))


def test_both_forms_say_the_same(metrics, facts):
    made = card(metrics, facts, members=MEMBERS, pictures=[picture()])
    html, markdown = as_html(made), as_markdown(made)
    for section in made.sections:
        for text in [section.title, *section.words, *(c for table in section.tables for row in table for c in row)]:
            assert escape(text) in html
            assert text.replace("|", "\\|") in unescape(markdown) or text in unescape(markdown)
    assert html.count('class="filled"') == sum(bool(item.answered) for item in made.items)


@pytest.mark.parametrize(
    "missing", [*QUESTIONS, "deferral", "guarantee", "verdict", "ensemble", "out_of_distribution", "everything"]
)
def test_what_is_missing_is_said_and_nothing_is_blank(metrics, facts, missing):
    kept = {} if missing == "everything" else {name: one for name, one in metrics.items() if name != missing}
    members = {} if missing == "everything" else MEMBERS
    made = card(kept, facts, members=members)
    for section in made.sections:
        assert section.words or section.tables
        cells = [cell for table in section.tables for row in table[1:] for cell in row]
        assert all(text.strip() and "None" not in text and "nan" not in text for text in [*section.words, *cells])
    html = as_html(made)
    assert "<td></td>" not in html
    assert ">None<" not in html
    if missing in QUESTIONS:
        assert f"you would rely on what was not measured: {missing}" in html
    if missing not in ("baseline", "diversity"):
        assert html.count(NOT_MEASURED) > as_html(card(metrics, facts, members=MEMBERS)).count(NOT_MEASURED)


def test_a_reason_stands_where_a_figure_does_not_apply(metrics, facts):
    del metrics["deferral"]["selective_risk"]
    metrics["deferral"]["selective_risk_absent"] = "there is no such case"
    metrics["deferral"]["subgroups"] = {"absent": "the case table has no subgroup column"}
    metrics["failures"]["ensemble"] = {"n_errors": 0}
    for text in told(metrics, facts):
        assert "not applicable because there is no such case" in text
        assert "not measurable, not applicable because the case table has no subgroup column" in text
        assert "not applicable because there is no error" in text


def test_a_placeholder_is_named(metrics, facts):
    assert "Nobody has written" not in "".join(told(metrics, facts))
    left = facts.model_copy(update={"owner": "<the department>", "contact": "<a name>"})
    assert left.left_open() == ["owner", "contact"]
    for text in told(metrics, left):
        assert "Nobody has written in card.yaml: owner, contact." in unescape(text)
        assert "Owner: not measured: card.yaml has <the department>." in unescape(text)


def test_what_was_written_for_other_images_is_not_told_of_these(metrics, facts):
    assert facts.about("phantom") == facts
    other = facts.about("folder")
    assert set(other.left_open()) == set(Facts.model_fields) - {"written_for", "cases", "positive"}
    for text in told(metrics, other):
        assert facts.intended_use not in unescape(text)
        assert "of 100 cases like these" in text


def test_a_text_too_long_for_the_page_is_refused(tmp_path):
    text = (ROOT / "card.yaml").read_text(encoding="utf-8")
    path = tmp_path / "card.yaml"
    path.write_text(re.sub(r"owner: .*", f"owner: {'x' * 161}", text), encoding="utf-8")
    with pytest.raises(ValueError, match=r"card\.owner is .*at most 160 characters"):
        read(path, "card", Facts)
    path.write_text(re.sub(r"owner: .*", 'owner: ""', text), encoding="utf-8")
    with pytest.raises(ValueError, match=r"card\.owner"):
        read(path, "card", Facts)
    path.write_text(re.sub(r"  owner: .*\n", "", text), encoding="utf-8")
    with pytest.raises(ValueError, match=r"card\.owner is missing"):
        read(path, "card", Facts)


def test_the_page_needs_no_network_and_no_script(metrics, facts):
    html, _ = told(metrics, facts.model_copy(update={"owner": '<script>alert("x")</script> & co'}))
    assert "http" not in html
    assert re.findall(r'(?:src|href)="(?!data:)', html) == []
    assert "<script" not in html
    assert "url(#hatched)" in html


def test_a_placeholder_is_no_tag(metrics, facts):
    for text in told(metrics, facts.model_copy(update={"owner": "<the department>"})):
        assert "<the department>" not in text
        assert "&lt;the department" in text


def test_colours_are_greys(metrics, facts):
    html, _ = told(metrics, facts)
    colours = re.findall(r"#([0-9a-f]{3}|[0-9a-f]{6})\b", html.split("</style>")[0])
    assert colours
    assert all(len(set(colour[::2])) == 1 and len(set(colour)) <= 2 for colour in colours)


def test_the_crosswalk_knows_every_item_and_only_places_that_exist(metrics, facts):
    sources = [Source("calibration", {}, {})]
    made = card(metrics, facts, members=MEMBERS, sources=sources)
    counted = {}
    for item in made.items:
        counted.setdefault(item.guideline, []).append(item.item)
    assert {name: len(items) for name, items in counted.items()} == {
        "TRIPOD+AI": 52,
        "CLAIM 2024": 44,
        "Model Facts": 25,
    }
    assert all(len(set(items)) == len(items) for items in counted.values())
    known = {section.key for section in made.sections} | set(Facts.model_fields) | {"sources"}
    for wanted in pd.read_csv(ROOT / "tmv_lib/card/crosswalk.csv")["answered_by"].dropna():
        if wanted.startswith("repository:"):
            assert (ROOT / wanted.removeprefix("repository:").split(",")[0]).exists()
        else:
            assert set(wanted.split()) <= known


def test_the_crosswalk_loses_what_is_not_measured(metrics, facts):
    def filled(metrics: dict, facts: Facts) -> set[tuple[str, str]]:
        items = card(metrics, facts, members=MEMBERS).items
        return {(item.guideline, item.item) for item in items if item.answered}

    everything = filled(metrics, facts)
    assert ("CLAIM 2024", "39") in everything
    assert ("CLAIM 2024", "33") not in everything  # external data: not done
    without = filled({name: one for name, one in metrics.items() if name != "failures"}, facts)
    assert everything - without == {("CLAIM 2024", "39"), ("Model Facts", "17")}
    named = filled(metrics, facts.model_copy(update={"external_validation": "two hospitals, AUROC 0.91"}))
    assert named - everything == {("CLAIM 2024", "33"), ("Model Facts", "11")}


def test_sources_carry_the_digest_that_dvc_has(tmp_path, metrics, facts):
    path = tmp_path / "file.json"
    path.write_bytes(b"{}\n")
    assert digest(path) == hashlib.md5(b"{}\n").hexdigest()
    for text in told(metrics, facts):
        assert "metrics/calibration.json 0123456789" in text
        assert "bins 15, knob null" in text


def test_a_stage_that_has_not_run_is_no_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (("site.json", '{"site": {"n": 3}}'), ("shift.json", '{"shift": {}}'), ("cases.csv", "a")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    files = {"site": ["cases.csv", "shift.json", "site.json"], "stability": ["stability.json"], "ensemble": []}
    metrics, sources = read_stages(files, {"site": {"draws": 20}})
    assert metrics == {"site": {"n": 3}}  # of what else lies there the digest alone is told
    assert [(source.stage, source.params) for source in sources] == [("site", {"draws": 20}), ("ensemble", {})]
    assert sources[0].files == {path: digest(path) for path in files["site"]}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize("size", ["A4", "letter"])
def test_it_prints_as_a_page_and_the_crosswalk(tmp_path, metrics, facts, size):
    html, _ = told(metrics, facts)
    page = tmp_path / "card.html"
    page.write_text(html.replace("@page { margin", f"@page {{ size: {size}; margin"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += [
        "--no-pdf-header-footer",
        f"--user-data-dir={tmp_path / 'home'}",
        f"--print-to-pdf={tmp_path / 'card.pdf'}",
    ]
    subprocess.run(["chromium", *flags, page.as_uri()], check=True, capture_output=True, timeout=120)
    assert len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "card.pdf").read_bytes())) == 2


def paths(found: dict, *above: str) -> list[tuple[str, ...]]:
    """Where every figure and every group of them stands."""
    here = [(*above, name) for name in found]
    return here + [path for name, one in found.items() if isinstance(one, dict) for path in paths(one, *above, name)]


def test_a_verdict_and_a_promise_are_whole_or_a_loud_failure(metrics, facts):
    needed = [
        ("verdict", "cost"),
        ("verdict", "against"),
        ("verdict", "good_for"),
        ("explanations", "one", "verdict", "usable"),
        ("explanations", "one", "verdict", "because_of"),
        ("guarantee", "missed_positives", "limit"),
    ]
    for *above, name in needed:
        kept = deepcopy(metrics)
        entry = kept
        for key in above:
            entry = entry[key]
        entry[f"{name}_renamed"] = entry.pop(name)
        with pytest.raises(KeyError, match=name):
            card(kept, facts, members=MEMBERS)


def test_any_other_figure_may_be_missing(metrics, facts):
    for *above, name in paths(metrics):
        if {"verdict", "guarantee"} & set(above):
            continue
        kept = deepcopy(metrics)
        entry = kept
        for key in above:
            entry = entry[key]
        del entry[name]
        made = card(kept, facts, members=MEMBERS)
        cells = [cell for section in made.sections for table in section.tables for row in table[1:] for cell in row]
        words = [text for section in made.sections for text in section.words]
        assert all(text.strip() and "None" not in text for text in [*cells, *words]), (*above, name)

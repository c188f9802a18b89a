"""The card of the run whose metrics stand in the repository: what it says, follows, and refuses."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from html import escape, unescape
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest

from tmv_lib import __version__
from tmv_lib.card.answers import ANSWERS, answer, answer_of, questions
from tmv_lib.card.card import Card, Picture, Source, make, png, read_digests, read_sources, render
from tmv_lib.card.facts import Facts
from tmv_lib.card.identity import Identity, digest, identify
from tmv_lib.card.policy import MOST_SUBGROUPS, of_hundred, when
from tmv_lib.card.sections import CLINICIAN
from tmv_lib.card.words import NOT_MEASURED, number, share
from tmv_lib.pipeline.metrics import SUFFIXES
from tmv_lib.pipeline.params import named_members, read
from tmv_lib.pipeline.record import Figures
from tmv_lib.statistics.estimate import Estimate

ROOT = Path(__file__).parents[1]
MEMBERS = named_members(ROOT / "params.yaml")
SOURCES = [Source("calibration", "metrics/calibration.json 0123456789", "bins 15, knob null")]
PICTURE = Picture(png(np.zeros((8, 8), np.uint8)), "undetermined: negative, p 0.71, decided", "../undetermined.png")
IDENTITY = Identity(
    "1.2", "0123456789", "2026-01-02", False, {"cases.csv": "0a" * 16}, "2026-01-01", {"densenet121": "1b" * 16}
)
# What a stage leaves out where there is nothing to say, and names that are data.
MAY_BE_LEFT_OUT = {
    "budget", "gap_decided", "gap_decided_rests_on", "gain_over_margin", "interaction", "noise_floor_p95", "on_test",
    "patients_needed", "patients_wanted", "positive_class_ece_uniform", "widening",
}  # fmt: skip
NAMED_BY_DATA = {
    ("at_prevalence",), ("failures",), ("foreign",), ("problems",), ("site",), ("splits",), ("subgroups",),
    ("uncertainty",), *((name,) for name in MEMBERS),
}  # fmt: skip


def committed() -> dict[str, dict]:
    return {stage: json.loads((ROOT / f"metrics/{stage}.json").read_text(encoding="utf-8")) for stage in ANSWERS}


@pytest.fixture
def metrics() -> dict[str, dict]:
    return committed()


@pytest.fixture
def facts() -> Facts:
    return read(ROOT / "card.yaml", "card", Facts)


def made(metrics: dict[str, dict], facts: Facts) -> Card:
    """The card of these metrics; a stage that is not among them has not run."""
    figures = {
        stage: Figures(metrics[stage], f"metrics/{stage}.json") if stage in metrics else None for stage in ANSWERS
    }
    return make(figures, facts, MEMBERS, IDENTITY, SOURCES, [PICTURE])


def shown(metrics: dict[str, dict], facts: Facts) -> list[str]:
    return [unescape(render(made(metrics, facts), ending)) for ending in ("html", "md")]


def texts(card: Card) -> Iterator[str]:
    """Every word and cell of the sections; the head of a table may have an empty corner."""
    for section in card.sections.values():
        assert section.words or section.tables
        yield from (section.title, *section.words)
        yield from (cell for table in section.tables for row in table[1:] for cell in row)


def below(entry: dict, *path: str) -> dict:
    for name in path:
        entry = entry[name]
    return entry


def test_a_hundred_are_a_hundred():
    rng = np.random.default_rng(0)
    for _ in range(200):
        counts = dict(enumerate(rng.integers(0, rng.integers(1, 400), size=6)))
        total = sum(counts.values())
        found = of_hundred(counts)
        assert sum(found.values()) == (100 if total else 0)
        assert all(abs(found[name] - 100 * count / max(total, 1)) < 1 for name, count in counts.items())
    assert of_hundred({"a": 1, "b": 1, "c": 1}) == {"a": 34, "b": 33, "c": 33}


def test_a_figure_is_a_value_or_a_reason():
    assert share(Estimate(0.25, 0.24, 0.26)) == "25.0 % (24.0 to 26.0)"
    assert number(Estimate(0.25)) == "0.250"
    assert share(Estimate(absent="nobody is decided")) == "not applicable because nobody is decided"


FIRST, SECOND = list(MEMBERS)[:2]
CHANGES = [
    (("ensemble", "deferral", "selective_risk"), 0.3456, "34.6 %"),
    (("ensemble", "deferral", "threshold"), 0.777, "0.777"),
    (("ensemble", "deferral", "decided_sensitivity"), 0.1234, "12.3 %"),
    (("ensemble", "deferral", "at_prevalence", "0.05", "precision"), 0.2345, "23.4 %"),
    (("ensemble", "deferral", "cost", "false_negative"), 17.0, "about 17"),
    (("ensemble", "deferral", "baseline_decides_all", "reduction"), -0.0456, "-4.6 %"),
    (("ensemble", "deferral", "subgroups", "y_true: positive", "coverage"), 0.4321, "43.2 %"),
    (("ensemble", "deferral", "failures", "undetermined", "caught"), 0.9753, "97.5 %"),
    (("ensemble", "deferral", "learned", "used"), True, "the margin, lowered by doubts"),
    (("ensemble", "deferral", "out_of_distribution"), 0.7531, "75.3 %"),
    (("ensemble", "deferral", "threshold_from"), "params", "set by hand"),
    (("ensemble", "deferral", "deferral_can_pay"), False, "you hand cases to a doctor to save cost"),
    (("ensemble", "deferral", "calibration_of_decided", "decided", "p_value"), 0.001, "you read its probability as a"),
    (("ensemble", "ensemble", "in_use", "auroc"), 0.6543, "0.654"),
    (("ensemble", "verdict", "cost"), 0.1777, "0.178 per case"),
    (("ensemble", "verdict", "good_for", "called_positive", "wrong"), 0.7777, "77.8 %"),
    (("ensemble", "guarantee", "lapses"), True, "Nothing is promised"),
    (("ensemble", "guarantee", "false_alarms", "on_test", "verdict"), "broken", "on test it is broken"),
    (("calibration", "calibration", FIRST, "before", "positive_class_ece_uniform", "ece"), 0.1357, "0.136"),
    (("calibration", "calibration", SECOND, "after", "in_the_large"), 1.23, "+1.23"),
    (("uncertainty", "uncertainty", SECOND, "margin", "adjusted_error_auroc"), 0.5432, "0.543"),
    (("uncertainty", "uncertainty", SECOND, "distance", "over_margin"), "better", "better than the margin: distance"),
    (("uncertainty", "out_of_distribution", "foreign", "rotated_90", "refused"), 0.4321, "rotated 90 (43 %)"),
    (("explanations", "explanations", SECOND, "verdict"), {"usable": True, "because_of": ""}, "deserve a look"),
    (("explanations", "explanations", FIRST, "border_flip_rate"), 0.3141, "31.4 %"),
    (("stability", "stability", FIRST, "errors", "claim", "answer"), "the opposite", "the opposite with an adjusted"),
    (
        ("stability", "stability", FIRST, "errors", "rank_correlation", "rests_on"),
        "called_positive",
        "positive calls alone",
    ),
    (("failures", "failures", "ensemble", "undetermined", "share"), 0.2718, "27.2 %"),
    (("prepare", "prepare", "problems", "duplicate", "images"), 31, "duplicates (31 images)"),
    (("prepare", "prepare", "problems", "blank", "images"), 1, "blank images (1 image)"),
    (("site", "site", "shift", "name"), "both_classes", "Positives and negatives both look different here"),
    (("site", "site", "shift", "training_patients_at_the_site"), 1, "were trained on 1 patient of the site"),
    (("site", "site", FIRST, "interaction", "blame"), "home", "off at the source already"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value", "seen"), CHANGES)
def test_the_card_follows_its_metrics(metrics, facts, place, value, seen):
    *above, name = place
    entry = below(metrics, *above)
    assert name in entry
    assert not any(seen in text for text in shown(metrics, facts))
    entry[name] = value
    assert all(seen in text for text in shown(metrics, facts))


def places(entry: dict, *above: str) -> Iterator[tuple[str, ...]]:
    """Where every figure, and every group of them, stands."""
    for name, one in entry.items():
        yield (*above, name)
        if isinstance(one, dict):
            yield from places(one, *above, name)


def card_or_refusal(metrics: dict[str, dict], facts: Facts) -> Card | str:
    try:
        return made(metrics, facts)
    except ValueError as error:
        return str(error)


def printed(card: Card) -> Card:
    """The card without the keys that were read, some of which only to see what is there."""
    return card._replace(sections={key: one._replace(figures={}) for key, one in card.sections.items()})


@pytest.mark.parametrize("stage", ANSWERS)
def test_a_renamed_metric_is_a_loud_failure_with_its_name_and_file(metrics, facts, stage):
    """Each key in its turn: where the card reads it, there is no card; where it does not, the card stays the same."""
    before, refused = made(metrics, facts), 0
    endings = tuple(ending for ending in SUFFIXES.values() if ending)
    for *above, name in list(places(metrics[stage])):
        if name.endswith(endings) or name in MAY_BE_LEFT_OUT or tuple(above[-1:]) in NAMED_BY_DATA:
            continue
        entry = below(metrics[stage], *above)
        kept = dict(entry)
        entry[f"{name}_renamed"] = entry.pop(name)
        after = card_or_refusal(metrics, facts)
        if isinstance(after, str):
            refused += 1
            assert f"metrics/{stage}.json" in after
            assert name in after
        else:
            assert printed(after) == printed(before), (*above, name)
        entry.clear()
        entry.update(kept)
    assert refused or stage in ("baseline", "diversity")  # they have answers, and no section


@pytest.mark.parametrize("stage", ANSWERS)
def test_a_renamed_metric_fails_its_answer(metrics, stage):
    before, refused = answer_of(stage, Figures(metrics[stage], "file.json")), 0
    for *above, name in list(places(metrics[stage])):
        entry = below(metrics[stage], *above)
        kept = dict(entry)
        entry[f"{name}_renamed"] = entry.pop(name)
        try:
            answer_of(stage, Figures(metrics[stage], "file.json"))
        except ValueError as error:
            refused += "file.json" in str(error) and repr(name) in str(error)
        except TypeError:
            assert name.endswith(("_low", "_high"))  # an interval with one end
        entry.clear()
        entry.update(kept)
    assert refused
    assert answer_of(stage, Figures(metrics[stage], "file.json")) == before


@pytest.mark.parametrize("missing", [*ANSWERS, "everything"])
def test_a_stage_that_has_not_run_is_not_measured_and_nothing_is_blank(metrics, facts, missing):
    whole = made(metrics, facts)
    kept = {} if missing == "everything" else {stage: one for stage, one in metrics.items() if stage != missing}
    card = made(kept, facts)
    assert all(text.strip() and "None" not in text and "nan" not in text.split() for text in texts(card))
    html, markdown = (render(card, ending) for ending in ("html", "md"))
    assert "<td></td>" not in html
    for text in (html, markdown):
        stages = ", ".join(ANSWERS) if missing == "everything" else missing
        assert f"you would rely on what was {NOT_MEASURED}: {stages}" in text
    assert html.count(NOT_MEASURED) > render(whole, "html").count(NOT_MEASURED)


def test_what_stands_on_the_card_is_words(metrics, facts):
    card = made(metrics, facts)
    for text in texts(card):
        assert text.strip()
        if "metrics/" not in text and "params.yaml" not in text and "prepare.phantom" not in text:
            assert not re.search(r"[a-z]_[a-z]", text), text
        assert "nan" not in text.split()
    for stage in ANSWERS:
        said = answer_of(stage, Figures(metrics[stage], stage))
        assert said.endswith(".")
        assert not re.search(r"[a-z]_[a-z]|\bnan\b|None|\b1 [a-z]+s\b", said), said


def test_both_forms_say_the_same(metrics, facts):
    card = made(metrics, facts)
    html, markdown = (render(card, ending) for ending in ("html", "md"))
    for text in texts(card):
        assert str(escape(text)).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in html
        assert text.replace("|", "\\|") in unescape(markdown) or text in unescape(markdown)
    answered = sum(bool(item.answered) for items in card.guidelines.values() for item in items)
    assert html.count('class="filled"') == answered
    assert markdown.count("| missing |") == html.count('class="missing"') > 0
    assert f"![{PICTURE.caption}]({PICTURE.sheet})" in markdown


def test_markdown_tables_are_whole(metrics, facts):
    lines = render(made(metrics, facts), "md").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert all(line == line.rstrip() and line.endswith("|") for line in rows)
    for rule in (k for k, line in enumerate(lines) if re.fullmatch(r"\|( --- \|)+", line)):
        assert lines[rule - 2] == ""
        end = next(k for k in range(rule, len(lines) + 1) if k == len(lines) or not lines[k].startswith("|"))
        assert end > rule + 1
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in lines[rule - 1 : end]}
        assert len(columns) == 1
    assert not re.search(r"\n\n\n", "\n".join(lines))


def test_a_reason_stands_where_a_figure_does_not_apply(metrics, facts):
    deferral, own = metrics["ensemble"]["deferral"], metrics["failures"]["failures"]["ensemble"]
    del deferral["selective_risk"]
    deferral["selective_risk_absent"] = "there is no such case"
    deferral["subgroups"] = {"absent": "the case table has no subgroup column"}
    own["n_errors"] = 0
    for text in shown(metrics, facts):
        assert "not applicable because there is no such case" in text
        assert "Other subgroups: not applicable because the case table has no subgroup column" in text
        assert "not applicable because there is no error" in text


def test_a_placeholder_is_named(metrics, facts):
    assert "Nobody has written" not in "".join(shown(metrics, facts))
    left = facts.model_copy(update={"owner": "<the department>", "contact": "<a name>"})
    assert left.left_open() == ["owner", "contact"]
    for text in shown(metrics, left):
        assert "Nobody has written in card.yaml: owner, contact." in text
        assert "Owner: not measured: card.yaml has <the department>." in text


def test_what_was_written_for_other_images_is_not_told_of_these(metrics, facts):
    assert facts.about("phantom") == facts
    other = facts.about("folder")
    assert set(other.left_open()) == set(Facts.model_fields) - {"written_for", "cases", "positive"}
    for text in shown(metrics, other):
        assert facts.intended_use not in text
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
    left = facts.model_copy(update={"owner": '<script>alert("x")</script> & co'})
    html = render(made(metrics, left), "html")
    assert "http" not in html
    assert re.findall(r'(?:src|href)="(?!data:)', html) == []
    assert "<script" not in html
    assert "url(#hatched)" in html


def test_a_placeholder_is_no_tag(metrics, facts):
    card = made(metrics, facts.model_copy(update={"owner": "<the department>"}))
    for text in (render(card, ending) for ending in ("html", "md")):
        assert "<the department>" not in text
        assert "&lt;the department" in text


def test_colours_are_greys(metrics, facts):
    html = render(made(metrics, facts), "html")
    colours = re.findall(r"#([0-9a-f]{3}|[0-9a-f]{6})\b", html.split("</style>")[0])
    assert colours
    assert all(len(set(colour[::2])) == 1 and len(set(colour)) <= 2 for colour in colours)


def test_the_crosswalk_knows_every_item_and_only_places_that_exist(metrics, facts):
    card = made(metrics, facts)
    assert {name: len(items) for name, items in card.guidelines.items()} == {
        "TRIPOD+AI": 52,
        "CLAIM 2024": 44,
        "Model Facts": 25,
    }
    assert all(len({item.item for item in items}) == len(items) for items in card.guidelines.values())
    known = set(card.sections) | set(Facts.model_fields) | {"sources"}
    for wanted in pd.read_csv(ROOT / "tmv_lib/card/crosswalk.csv")["answered_by"].dropna():
        if wanted.startswith("repository:"):
            assert (ROOT / wanted.removeprefix("repository:").split(",")[0]).exists()
        else:
            assert set(wanted.split()) <= known


def test_the_crosswalk_loses_what_is_not_measured(metrics, facts):
    def filled(metrics: dict, facts: Facts) -> set[tuple[str, str]]:
        guidelines = made(metrics, facts).guidelines
        return {(name, item.item) for name, items in guidelines.items() for item in items if item.answered}

    everything = filled(metrics, facts)
    assert ("CLAIM 2024", "39") in everything
    assert ("CLAIM 2024", "33") not in everything  # external data: not done
    without = filled({name: one for name, one in metrics.items() if name != "failures"}, facts)
    assert everything - without == {("CLAIM 2024", "39"), ("Model Facts", "17")}
    assert ("Model Facts", "1") not in everything  # it is used nowhere
    named = filled(metrics, facts.model_copy(update={"external_validation": "two hospitals, AUROC 0.91"}))
    assert named - everything == {("CLAIM 2024", "33"), ("Model Facts", "11")}


def test_sources_are_the_files_that_there_are_with_the_digest_that_dvc_has(tmp_path, metrics, facts):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "metrics").mkdir()
    path = tmp_path / "metrics/site.json"
    path.write_bytes(b"{}\n")
    assert digest(path) == hashlib.md5(b"{}\n").hexdigest()
    sources = read_sources(tmp_path, MEMBERS, read_digests(tmp_path, MEMBERS))
    assert [source.stage for source in sources] == ["site", "ensemble"]
    assert sources[0].files == f"metrics/site.json {digest(path)[:10]}"
    assert "draws " in sources[0].params
    for text in shown(metrics, facts):
        assert SOURCES[0].files in text
        assert SOURCES[0].params in text


def git(folder: Path, *arguments: str, date: str = "2026-01-02") -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    when = dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), f"{date}T12:00:00Z")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True, env=os.environ | when
    )
    return done.stdout.strip()


def test_a_card_names_the_commit_that_made_it_and_not_the_one_that_records_it(tmp_path):
    digests = {"data/prepare/images.npy": "0a" * 16, "data/train/a/weights.safetensors": "1b" * 16}
    outside = identify(tmp_path, digests)
    assert (outside.commit, outside.recorded, outside.changed) == ("", "", False)
    assert sum("not measured" in words for words in outside.words()) == 2
    git(tmp_path, "init", "--quiet")
    (tmp_path / "params.yaml").write_text("a: 1\n", encoding="utf-8")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "Code")
    code = git(tmp_path, "rev-parse", "HEAD")[:10]
    made = identify(tmp_path, digests)
    assert made == Identity(__version__, code, "2026-01-02", False, {"images.npy": "0a" * 16}, "", {"a": "1b" * 16})
    (tmp_path / "dvc.lock").write_text(f"md5: {'0a' * 16}\n", encoding="utf-8")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "Results", date="2026-01-03")
    assert identify(tmp_path, digests) == made._replace(recorded="2026-01-03")
    (tmp_path / "dvc.lock").write_text(f"- md5: {'0a' * 16}\n", encoding="utf-8")
    git(tmp_path, "commit", "--quiet", "--all", "--message", "Later results", date="2026-01-04")
    assert identify(tmp_path, digests) == made._replace(recorded="2026-01-03")
    (tmp_path / "params.yaml").write_text("a: 2\n", encoding="utf-8")
    assert identify(tmp_path, digests).changed


def twin(card: Card) -> dict:
    return json.loads(render(card, "json"))


@pytest.mark.parametrize("missing", ["nothing", "ensemble", "everything"])
def test_the_twin_follows_its_schema(metrics, facts, missing):
    schema = json.loads((ROOT / "tmv_lib/card/trust_card.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    kept = {} if missing == "everything" else {stage: one for stage, one in metrics.items() if stage != missing}
    card = twin(made(kept, facts))
    jsonschema.validate(card, schema)
    assert not card["of_hundred"] or sum(card["of_hundred"].values()) == 100
    del card["sections"][0]["figures"]
    with pytest.raises(jsonschema.ValidationError, match="'figures' is a required property"):
        jsonschema.validate(card, schema)


def test_every_figure_of_the_twin_stands_in_the_metrics_under_its_key(metrics, facts):
    sections = twin(made(metrics, facts))["sections"]
    assert [one["key"] for one in sections if one["first_page"]] == [
        one["key"] for one in sections if one["key"] in CLINICIAN
    ]
    count = 0
    for section in sections:
        for place, value in section["figures"].items():
            file, keys = place.split(" ", 1)
            assert value == keyed(metrics[Path(file).stem], keys), place
            count += 1
    assert count > 300


def keyed(entry: dict, keys: str) -> object:
    """The value under keys joined by blanks, which a key may hold itself."""
    if keys in entry:
        return entry[keys]
    return next(keyed(one, keys[len(name) + 1 :]) for name, one in entry.items() if keys.startswith(f"{name} "))


def forms(value: float) -> set[str]:
    """How a figure may stand on the card: as a number, a percentage, or its complement, in any digits in use."""
    parts = [value, 100 * value, 100 * (1 - value)]
    rounded = [f"{abs(part):.{digits}f}" for part in parts for digits in range(4)]
    return {*rounded, f"{value:.3g}", f"{abs(100 * value):.3g}", f"{value:g}", f"{float(f'{value:.2g}'):.0f}"}


def test_every_number_on_the_card_comes_from_a_figure_that_its_section_names(metrics, facts):
    """But for counts that are made of several: 100 cases, rows left out, and numbers that belong to words."""
    card = made(metrics, facts)
    for key, section in card.sections.items():
        said = " ".join([*section.words, *(cell for table in section.tables for row in table[1:] for cell in row)])
        for words in ("at p > 0.5", "|2p - 1|", "95 of 100 draws", "of 100 ", "densenet121", "resnet50", "0 is right"):
            said = said.replace(words, "")
        known = sums(card, metrics).get(key, set())
        for value in section.figures.values():
            known |= forms(value) if isinstance(value, (int, float)) else set(re.findall(r"[0-9.]*[0-9]", value))
        for keys in section.figures:
            in_keys = re.findall(r"[0-9.]*[0-9]", keys)  # such as the prevalence that a figure is of
            known |= {*in_keys, *(f"{100 * float(number):g}" for number in in_keys if number.count(".") < 2)}
        numbers = re.findall(r"(?<![\w.])[0-9][0-9,]*(?:\.[0-9]+)?", said)
        lost = {number for number in numbers if number.replace(",", "") not in known}
        assert key in ("identity", "members", "people") or not lost, (key, lost)


def sums(card: Card, metrics: dict[str, dict]) -> dict[str, set[str]]:
    """By section the numbers that are made of several figures."""
    good = metrics["ensemble"]["verdict"]["good_for"]
    decided = good["called_negative"]["share"] + good["called_positive"]["share"]
    hundred = card.hundred
    pairs = {str(a + b) for a in hundred.values() for b in hundred.values()} | {str(a) for a in hundred.values()}
    counts = metrics["ensemble"]["deferral"]
    groups = [one for one in counts["subgroups"].values() if isinstance(one, dict)]
    return {
        "verdict": {f"{100 * (1 - decided):.0f}"},
        "happens": pairs | {str(sum(n for name, n in hundred.items() if name.startswith("positive")))},
        "reading": {f"{100 * counts['n_positive'] / counts['n']:.0f}"},
        "subgroups": {str(len(groups) - MOST_SUBGROUPS)},
    }


@pytest.mark.parametrize("answer", ["use", "do_not_use", "cannot_tell"])
def test_the_first_page_says_in_a_sentence_when_to_use_it(metrics, facts, answer):
    """It follows the verdict, names nothing that is not in the metrics, and never advises what the verdict denies."""
    metrics["ensemble"]["verdict"]["answer"] = answer
    said = when(Figures(metrics["ensemble"], "file.json"), facts.cases)
    assert said.startswith({"use": "For ", "do_not_use": "Not as it is", "cannot_tell": "Only beside a doctor"}[answer])
    counts = metrics["ensemble"]["deferral"]
    assert f"{counts['n']} images of {counts['n_patients']} patients" in said
    assert ("let it decide" in said) == (answer == "use")


def test_what_only_the_truth_defines_forbids_nothing(metrics, facts):
    """A subgroup on which it errs more often stands under "do not use it" only if one can know it beforehand."""
    groups = metrics["ensemble"]["deferral"]["subgroups"]
    name = next(name for name, one in groups.items() if "gap_decided_rests_on" in one)
    worse = {"gap_decided": 0.5, "gap_decided_low": 0.4, "gap_decided_high": 0.6, "gap_decided_p_value_holm": 0.001}
    for by_truth in (False, True):
        groups[name] |= worse | {"defined_by_truth": by_truth}
        forbidden = " ".join(made(metrics, facts).sections["do_not_use"].words)
        assert (name in forbidden) == (not by_truth)


@pytest.mark.skipif(
    shutil.which("chromium") is None or shutil.which("pdftohtml") is None, reason="needs chromium and poppler"
)
@pytest.mark.parametrize("size", ["A4", "letter"])
@pytest.mark.parametrize("long", [False, True])
def test_what_a_clinician_needs_prints_on_one_page_of_at_least_eight_points(tmp_path, metrics, facts, size, long):
    """Also where every text of card.yaml is as long as it may be."""
    if long:
        open_ended = [name for name, field in Facts.model_fields.items() if "160" in str(field)]
        assert len(open_ended) > 10
        facts = facts.model_copy(update=dict.fromkeys(open_ended, ("a long text " * 14)[:160]))
    html = render(made(metrics, facts), "html")
    page = tmp_path / "card.html"
    page.write_text(html.replace("@page { margin", f"@page {{ size: {size}; margin"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += [
        "--no-pdf-header-footer",
        f"--user-data-dir={tmp_path / 'home'}",
        f"--print-to-pdf={tmp_path / 'card.pdf'}",
    ]
    subprocess.run(["chromium", *flags, page.as_uri()], check=True, capture_output=True, timeout=120)
    told = subprocess.run(
        ["pdftohtml", "-xml", "-i", "-stdout", "-zoom", "3", tmp_path / "card.pdf"], check=True, capture_output=True
    ).stdout.decode()
    first, second, *_ = told.split("<page ")[1:]
    assert "Appendix" not in first
    assert "Appendix" in second  # right after the first page
    titles = {key: f"<b>{one.title}" for key, one in made(metrics, facts).sections.items()}
    assert {key for key, title in titles.items() if title in unescape(first)} == set(CLINICIAN)
    sizes = [int(points) / 3 for points in re.findall(r'<fontspec [^>]*size="(\d+)"', told)]
    assert min(sizes) >= 8


def test_every_question_has_an_answer_or_has_not_been_asked(tmp_path):
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    assert list(questions(tmp_path)) == [*ANSWERS, "acceptance", "monitor"]
    assert answer("monitor", tmp_path) == "not measured: `make monitor` has not run"
    assert answer("site", tmp_path) == "not measured: the stage `site` has not run"
    assert answer("site", ROOT) in answer_of("site", Figures(committed()["site"], "site"))

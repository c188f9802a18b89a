"""What the viewer says, without a browser: laws of the queues, the reveal, the policy and the evidence."""

import doctest
import json
import re
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import yaml
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from demo import answers, cases, evidence, export, film, maps, page, pictures, policy, tally, upload
from demo.disk import NOT_MEASURED, Disk
from tests.made_world import MEMBERS, ROOT, make
from tmv_lib.card.answers import ANSWERS
from tmv_lib.pipeline import diagrams

SAYS = re.compile(r"of 100|likely|Reference label|estimated chance|lanted in this|person|NORMAL|logit|lobar")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("world"))


@pytest.fixture
def fresh(tmp_path):
    return make(tmp_path)


@pytest.fixture
def known(made):
    return cases.collect(Disk(made))


def by_deferral(known, deferred):
    return int(known.table.index[known.table["deferred"] == deferred][0])


@pytest.mark.parametrize(
    "module", [answers, cases, evidence, export, film, maps, page, pictures, policy, tally, upload]
)
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


def test_the_view_model_imports_neither_torch_nor_streamlit():
    code = "import sys, demo.export, demo.upload; sys.exit(bool({'torch', 'streamlit'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_test_case_has_one_number_and_the_default_queue_is_all_of_them(known):
    queue = cases.queues(known)[cases.RANDOM][1]
    everything = pd.read_csv(known.disk.root / "data/prepare/cases.csv")
    assert queue == list(range(1, len(queue) + 1))
    assert set(known.table["image_id"]) == set(everything["image_id"][everything["split"] == "test"])


def test_numbers_do_not_follow_the_order_of_the_files(known):
    places = known.table["row"].to_numpy()
    assert abs(np.corrcoef(places, np.arange(len(places)))[0, 1]) < 0.5
    assert cases.collect(known.disk).table["row"].tolist() == places.tolist()  # the same next time


def test_chosen_kinds_hold_what_they_say(known):
    table, queues = known.table, cases.queues(known)
    assert set(table["y_true"][queues["positive"][1]]) == {1}
    assert set(table["y_true"][queues["negative"][1]]) == {0}
    assert table["deferred"][queues["deferred"][1]].all()
    wrong = table.loc[queues["wrong"][1]]
    assert len(wrong)
    assert (wrong["decision"] != wrong["y_true"]).all()
    assert not wrong["deferred"].any()
    kinds = set(table.loc[~table["deferred"], "kind"].dropna())
    assert kinds
    for kind in kinds:
        assert set(table["kind"][queues[kind][1]]) == {kind}


def test_what_is_said_before_the_reveal_gives_nothing_away(known):
    for number in known.table.index:
        assert not SAYS.search(cases.image_alt(known, number))
        assert not SAYS.search(export.of_case(known, number, ""))


def test_a_deferred_case_shows_neither_prediction_nor_truth_nor_map(known):
    for number in known.table.index[known.table["deferred"]]:
        only = answers.reveal(known, number)
        assert only.lines[0] == f"**{answers.DEFERRED}**"
        assert not only.pictures
        assert only.table is None
        assert not SAYS.search(" ".join(only.lines))
        assert not SAYS.search(export.of_answer(known, number, ""))
        assert "<img" not in export.of_answer(known, number, "")
        with pytest.raises(ValueError, match=f"case {number} is deferred"):
            maps.overlays(known, number)
        with pytest.raises(ValueError, match=f"case {number} is deferred"):
            maps.changed(known, number)


def test_who_has_read_a_deferred_case_may_see_what_was_withheld(known):
    number = by_deferral(known, True)
    said = " ".join(answers.withheld(known, number).lines)
    assert f"estimated chance {cases.chance(known.table['y_prob'][number])}" in said
    assert f"Reference label: **{known.names.called(known.table['y_true'][number])}**" in said
    with pytest.raises(ValueError, match="nothing was withheld"):
        answers.withheld(known, by_deferral(known, False))


def test_the_other_images_of_a_patient_are_the_patients_and_nobody_elses(known):
    seen = set()
    for number in known.table.index:
        others = cases.others(known, number)
        assert number not in others
        assert {known.table["patient_id"][other] for other in others} <= {known.table["patient_id"][number]}
        shown = film.of_case(known, number)
        assert len(shown["images"]) == 1 + len(others)
        assert not SAYS.search(" ".join(each["alt"] for each in shown["images"]))
        assert shown["map"] is None
        seen.add(len(others))
    assert seen == {0, 1} or seen == {1}


VERDICTS = {"use": "this answer may stand", "do_not_use": "not to use it", "cannot_tell": "was not shown"}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_five_kinds_of_cases_each_say_one_next_step_that_contradicts_nothing(fresh, verdict):
    """Right, wrong, deferred for doubt, deferred as unlike, and a finding that was never taught."""
    path = fresh / "metrics/ensemble.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    found["verdict"]["answer"] = verdict
    path.write_text(json.dumps(found), encoding="utf-8")
    table = pd.read_csv(fresh / "data/ensemble/cases.csv")
    table["out_of_distribution"] = table["deferred"] & (table.index % 2 == 0)
    table.to_csv(fresh / "data/ensemble/cases.csv", index=False)
    prepared = pd.read_csv(fresh / "data/prepare/cases.csv")
    test = (prepared["split"] == "test") & (prepared["finding"] != "none")
    prepared.loc[test, "finding"] = "retrocardiac"
    prepared.to_csv(fresh / "data/prepare/cases.csv", index=False)
    known = cases.collect(Disk(fresh))
    met = set()
    for number, case in known.table.iterrows():
        lines = answers.reveal(known, number).lines
        said = " ".join(lines)
        assert sum(line.startswith("**Next**: ") for line in lines) == 1
        (step,) = (line for line in lines if line.startswith("**Next**: "))
        assert step == lines[-1]
        if case["deferred"]:
            assert ("kind of image" in step) == case["out_of_distribution"]
            assert not any(words in step for words in VERDICTS.values())
            met.add("unlike" if case["out_of_distribution"] else "doubt")
        else:
            assert [words in step for words in VERDICTS.values()] == [each == verdict for each in VERDICTS]
            assert ("cannot rule out" in step) == (case["decision"] == 0)
            assert ("and wrong, as on" in said) == case["wrong"]
            assert ("nobody taught it that" in said) == (case["finding"] == "retrocardiac")
            met |= {"wrong" if case["wrong"] else "right"} | ({"rare"} if "nobody taught" in said else set())
        flagged = re.search(r"\*\*(Pneumonia|Flagged as possible pneumonia)\*\*", said)
        assert bool(flagged) == (not case["deferred"] and case["decision"] == 1)
    assert met == {"right", "wrong", "doubt", "unlike", "rare"}


def test_the_first_page_says_what_the_card_says(known, fresh):
    verdict, *others = evidence.first_page(known.disk)
    assert verdict.title == "When should I use this?"
    assert [each.title for each in others] == ["Use it when", "Do not use it when", "What happens"]
    card = (ROOT / "plots/ensemble/trust_card.md").read_text(encoding="utf-8")
    assert verdict.lines[0] in card
    (fresh / "metrics/ensemble.json").unlink()
    assert NOT_MEASURED in evidence.first_page(Disk(fresh))[0].lines[0]
    (fresh / "card.yaml").unlink()
    assert "cannot be given" in evidence.first_page(Disk(fresh))[0].lines[0]


def test_a_decided_case_says_its_probability_its_truth_and_its_doubt(known):
    number = by_deferral(known, False)
    case, said = known.table.loc[number], cases.details(known, number)
    answer = " ".join(answers.reveal(known, number).lines)
    assert f"estimated chance {cases.chance(case['y_prob'])}" in answer
    assert f"Reference label: **{known.names.called(case['y_true'])}**" in answer
    doubt = next(each for each in said if each.title == "Doubt")
    assert all(re.search(r"among cases this unsure the model was wrong \d+ of \d+", line) for line in doubt.lines)


def test_cases_this_unsure_are_of_other_patients(known):
    table = pd.DataFrame(
        {
            "patient_id": list("aabc"),
            "image_doubt": [0.5, 0.5, 0.4, 0.1],
            "model_doubt": 0.0,
            "decision": [1, 1, 1, 0],
            "y_true": [0, 0, 0, 0],
        }
    )
    doubt = cases._doubt(known._replace(table=table), table.loc[0])
    assert "wrong 1 of 2" in doubt.lines[0]  # b and c, not the second image of a


def test_among_the_nearest_training_cases_is_one_of_the_other_label(known):
    for number in known.table.index:
        found = cases.nearest(known, number)
        distances = [near.distance for near in found]
        assert {near.y_true for near in found} == {0, 1}
        assert distances == sorted(distances)
        splits = known.everything["split"].to_numpy()
        assert {splits[near.row] for near in found} == {"train"}


def test_nearest_training_cases_are_those_of_the_mean_cosine(known):
    number = 1
    row, total = known.table["row"][number], 0.0
    for name in MEMBERS:
        features = np.load(known.disk.root / f"data/train/{name}/features.npy").astype(float)
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        total = total + (1 - unit @ unit[row]) / len(MEMBERS)
    train = np.flatnonzero(known.everything["split"] == "train")
    nearest = train[np.argsort(total[train], kind="stable")[: cases.NEIGHBOURS]]
    found = cases.nearest(known, number)
    assert [near.row for near in found[: cases.NEIGHBOURS]] == nearest.tolist()
    assert found[0].distance == pytest.approx(total[nearest[0]], abs=1e-6)


def told(known, path=None, **said):
    """Readings of cases by number, all blind."""
    readings = tally.Readings(path)
    for number, answer in said.items():
        readings.commit(known.table["image_id"][int(number.removeprefix("n"))], answer, blind=True)
    return readings


def test_the_tally_counts_what_was_answered_and_scores_no_deferred_case(known):
    decided, deferred = by_deferral(known, False), by_deferral(known, True)
    truth = {number: "yes" if known.table["y_true"][number] else "no" for number in (decided, deferred)}
    model = int(not known.table["wrong"][decided])
    both = told(known, **{f"n{number}": answer for number, answer in truth.items()})
    assert tally.tally(known, both) == (
        f"You against the model: you were right in 1 of 1, it in {model} of 1; it left 1 to you, of which you were"
        " right in 1."
    )
    assert tally.tally(known, told(known, **{f"n{decided}": "cannot tell"})) == (
        "You against the model: you could not tell in 1."
    )
    assert "nothing answered" in tally.tally(known, told(known, **{f"n{decided}": "none"}))


def test_readings_survive_in_a_file_and_the_first_of_a_case_stays(known, tmp_path):
    path = tmp_path / "readings.csv"
    readings = told(known, path, n1="yes", n2="no")
    readings.commit(known.table["image_id"][1], "no", blind=True)
    readings.commit(known.table["image_id"][3], "none", blind=False)
    again = tally.Readings(path)
    assert again.by_case == readings.by_case
    assert [one.answer for one in again.by_case.values()] == ["yes", "no", "none"]
    assert tally.tally(known, again) == tally.tally(known, readings)
    told(known, path, n4="cannot tell")  # another session goes on where this one ended
    assert len(pd.read_csv(path)) == 4


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("image_id,answer\nx,yes\n", "the columns are image_id, answer"),
        ("image_id,answer,blind\nx,maybe,yes\n", "row 2 has answer 'maybe'"),
        ("", "no CSV file of readings"),
    ],
)
def test_a_file_that_holds_no_readings_is_refused_by_name(tmp_path, text, match):
    path = tmp_path / "other.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"other.csv: {match}"):
        tally.Readings(path)
    assert path.read_text(encoding="utf-8") == text


def test_the_readers_figures_on_the_deferred_are_counts_with_wilsons_intervals(known):
    positive, negative = (
        known.table.index[known.table["deferred"] & (known.table["y_true"] == label)] for label in (1, 0)
    )
    read = {f"n{positive[0]}": "yes", f"n{positive[1]}": "cannot tell", f"n{by_deferral(known, False)}": "no"}
    found = tally.on_deferred(known, told(known, **read))
    assert found["sensitivity"].value == 0.5
    # (p + z^2/2n +- z sqrt(p q/n + z^2/4n^2)) / (1 + z^2/n) with p = 1/2, n = 2
    assert (found["sensitivity"].low, found["sensitivity"].high) == pytest.approx((0.0945, 0.9055), abs=1e-4)
    assert found["specificity"].value is None
    assert len(negative)


def test_maps_say_how_large_they_are_and_where(known):
    number = by_deferral(known, False)
    for overlay in maps.overlays(known, number):
        shown = overlay.side_by_side(cases.image(known, number)).pictures
        assert f"{overlay.own.max():.2g}" in shown[0].caption
        assert f"{overlay.untrained.max():.2g}" in shown[1].caption
        for picture in shown:
            assert re.search(r"strongest in the .* of the image", picture.alt)
            assert pictures.MAP_NOTE in picture.alt
    assert all(len(change.pictures) == 8 for change in maps.changed(known, number))


def test_the_map_over_the_film_is_one_that_deserves_a_look_and_else_is_off(known):
    found = maps.overlays(known, by_deferral(known, False))
    good = found[1]._replace(usable=True)
    assert maps.first([found[0]._replace(usable=False), good]) is good
    assert maps.first(found[:1]) is found[0]
    for usable in (False, True):
        shown = film.of_images("a", [(np.zeros((8, 8), np.uint8), "x")], found[0]._replace(usable=usable))
        assert shown["map"]["on"] == usable


@pytest.mark.parametrize(
    ("cell", "words"),
    [((0, 0), "in the upper left of the image, at its border"), ((3, 3), "in the centre of the image")],
)
def test_where_a_map_is_strongest(cell, words):
    attribution = np.zeros((7, 7))
    attribution[cell] = 1
    assert pictures.where(attribution) == words


def test_an_empty_map_is_said_to_be_empty():
    assert "empty" in pictures.where(np.zeros((7, 7)))
    assert not pictures.coloured(np.zeros((7, 7)), scale=0.0)[..., 3].any()


def test_the_colours_rise_in_lightness_so_that_they_read_in_grey():
    red, green, blue = pictures.COLOURS.T / 255
    luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    assert (np.diff(luminance) > -1e-3).all()
    assert luminance[-1] - luminance[0] > 0.7


def test_opacity_0_is_the_plain_image(known):
    plain = pictures.view(cases.image(known, 1))
    colours = pictures.coloured(np.random.default_rng(0).normal(size=(7, 7)), scale=1.0)
    assert (pictures.over(plain, colours, opacity=0) == plain[..., None]).all()


def test_the_policy_at_the_point_of_the_run_is_what_lies_on_disk(known):
    run = policy.knobs(known)
    found, table = policy.point(known, run), known.table
    decided = ~table["deferred"]
    assert found.coverage == pytest.approx(decided.mean())
    assert found.risk == pytest.approx((table["decision"] != table["y_true"])[decided].mean())
    misses, alarms = ((table["y_true"] == y) & (table["decision"] != y) & decided for y in (1, 0))
    assert found.cost == pytest.approx((5 * misses.sum() + alarms.sum() + 0.25 * (~decided).sum()) / len(table))


def test_a_stricter_threshold_decides_no_more(known):
    run = policy.knobs(known)
    decided = [policy.point(known, run._replace(threshold=t)).decided for t in np.linspace(0, 1, 21)]
    assert decided == sorted(decided, reverse=True)


def test_another_prevalence_reweighs_and_tells_the_probabilities(known):
    rare = policy.knobs(known)._replace(prevalence=0.01, threshold=0.0)
    found, run = policy.point(known, rare), policy.point(known, policy.knobs(known)._replace(threshold=0.0))
    assert found.n == pytest.approx(run.n)
    assert found.missed + found.alarmed < run.missed + run.alarmed
    assert policy.prevalence_note(known, rare)


def test_a_doctor_who_errs_costs_more(known):
    run = policy.knobs(known)
    assert policy.point(known, run._replace(reader_specificity=0.7)).cost > policy.point(known, run).cost


def test_the_command_names_what_was_changed_and_nothing_else(known):
    run = policy.knobs(known)
    assert policy.command(known, run) == "dvc repro ensemble"
    changed = run._replace(threshold=0.5, review=0.1, prevalence=0.2)
    assert policy.command(known, changed) == "dvc exp run -S deferral.threshold=0.5 -S deferral.cost.review=0.1"


def leaves(found, path=()):
    """Every number in nested metrics, with its place."""
    for key, value in found.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield (*path, key)


@pytest.mark.parametrize("stage", list(ANSWERS))
def test_a_changed_metrics_file_changes_the_answer_and_a_deleted_one_is_not_measured(stage, fresh):
    disk, path = Disk(fresh), fresh / f"metrics/{stage}.json"

    def answer():
        return next(each for each in evidence.questions(disk) if each.stage == stage)

    before, found = answer(), json.loads(path.read_text(encoding="utf-8"))
    for place in list(leaves(found)):
        inner = found
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = 77777

    def spoken(value):
        if isinstance(value, dict):
            return {key: spoken(inner) for key, inner in value.items()}
        if isinstance(value, bool):
            return not value
        return "other words" if isinstance(value, str) and "." in value else value  # a sentence, no enumeration

    path.write_text(json.dumps(spoken(found)), encoding="utf-8")
    changed = answer()
    figures = [set(re.findall(r"\d+\.\d+", words.answer)) - {"0.5"} for words in (before, changed)]  # 0.5: a threshold
    assert changed.answer != before.answer
    assert not figures[0] & figures[1]
    assert set(changed.figures.values()) == {77777}
    path.unlink()
    gone = answer()
    assert gone.answer.startswith("Not measured")
    assert set(gone.figures.values()) == {None}
    path.write_text("{broken", encoding="utf-8")
    assert f"{path}: not a metrics file" in answer().answer


def test_a_figure_that_is_missing_is_named(fresh):
    path = fresh / "metrics/baseline.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    del found["baseline"]["auroc"]
    path.write_text(json.dumps(found), encoding="utf-8")
    answer = next(each for each in evidence.questions(Disk(fresh)) if each.stage == "baseline").answer
    assert f"{path} baseline: no metric 'auroc'" in answer


def test_tables_that_are_missing_or_change_are_followed(fresh):
    disk = Disk(fresh)
    number = by_deferral(cases.collect(disk), False)
    for path in ("data/uncertainty/cases.csv", "data/explanations/maps_densenet121.npy", "data/stability/logits.csv"):
        (fresh / path).unlink()
    (fresh / "data/train/resnet50/features.npy").unlink()
    known = cases.collect(disk)
    said = {each.title: " ".join(each.lines) for each in cases.details(known, number)}
    assert NOT_MEASURED in said["Doubt"]
    assert NOT_MEASURED in said["Nearest training cases"]
    assert maps.overlays(known, number)[0].own is None
    assert maps.changed(known, number) == []
    table = pd.read_csv(fresh / "data/ensemble/cases.csv").assign(y_prob=0.5, deferred=False)
    table.to_csv(fresh / "data/ensemble/cases.csv", index=False)
    assert "estimated chance 50 %" in answers.reveal(cases.collect(disk), number).lines[0]
    (fresh / "data/ensemble/cases.csv").unlink()
    assert cases.missing(disk) == ["data/ensemble/cases.csv"]
    with pytest.raises(ValueError, match=r"data/ensemble/cases\.csv: no such file"):
        cases.collect(disk)


def test_every_diagram_that_a_stage_declares_is_drawn_with_words(made):
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for each in evidence.questions(Disk(made)):
        drawn = evidence.plots(Disk(made), each.stage)
        declared = stages.get(each.stage, {"plots": []})["plots"]  # what comes after the study is not in the run
        entries = [entry for entry in declared if isinstance(entry, dict)]
        wanted = {of["title"].splitlines()[0] for entry in entries for of in entry.values() if "template" in of}
        assert wanted <= {plot.caption for plot in drawn}  # pictures are in the cache, not in git
        assert all(len(plot.alt) > 20 for plot in drawn)
        diagrams_of = [plot for plot in drawn if isinstance(plot.image, str)]
        assert all("nan" not in plot.image for plot in diagrams_of)
        assert all(f">{plot.caption}<" not in plot.image for plot in diagrams_of)  # the page says the title, once


def test_revisions_are_compared_figure_by_figure(fresh):
    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(["git", *identity, *arguments], cwd=fresh, check=True, capture_output=True)

    disk, path = Disk(fresh), fresh / "metrics/baseline.json"
    assert evidence.revisions(disk) == []
    git("init", "--quiet")
    git("add", "metrics")
    git("commit", "--quiet", "--message", "First")
    figures = json.loads(path.read_text(encoding="utf-8"))
    figures["baseline"]["auroc"] -= 0.2
    path.write_text(json.dumps(figures), encoding="utf-8")
    assert evidence.revisions(disk)[0].endswith("First")
    table = evidence.compared(disk, "HEAD").set_index("figure")
    assert table["change"]["AUROC of the baseline"] == "-0.2"
    assert table["change"]["coverage"] == "+0"
    assert evidence.compared(disk, "no-such") is None
    assert evidence.compared(disk, "--output=x") is None
    path.unlink()
    assert evidence.compared(disk, "HEAD").set_index("figure")["here"]["AUROC of the baseline"] == NOT_MEASURED


def test_the_export_asks_nothing_of_the_network_and_links_only_what_is_there(known, monkeypatch):
    monkeypatch.setattr(export, "FIRST", 3)
    monkeypatch.setattr(export, "OF_A_KIND", 1)
    pages = export.written(known)
    assert pages == export.written(known)
    for name, text in pages.items():
        assert page.NOT_CLINICAL in text
        assert not re.search(r'(src|href)="(https?:)?//', text), name
        assert set(re.findall(r'href="([^"]+)"', text)) <= set(pages), name
        assert "person" not in text
        assert "NORMAL" not in text
    blind = [text for name, text in pages.items() if name.startswith("case-")]
    assert blind
    for text in blind:
        assert not SAYS.search(re.sub(r'base64,[^"]*', "", text))


def png(shape, mode="L"):
    buffer = BytesIO()
    Image.new(mode, shape, 128).save(buffer, "PNG")
    return buffer.getvalue()


def dicom(**tags):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
    for name, value in tags.items():
        setattr(data, name, value)
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


def huge():
    """A PNG of 50,000 x 50,000 pixels by its header."""
    data = bytearray(png((64, 64)))
    data[16:24] = (50_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


GREY = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 8, "BitsStored": 8}
GREY |= {"HighBit": 7, "PixelRepresentation": 0}
BAD = {
    "empty": (b"", "This file is empty."),
    "cut short": (png((64, 64))[:80], "damaged, cut short"),
    "huge": (huge(), "50,000 x 50,000 pixels|more than 50 million pixels"),
    "text": (b"I am not an image", "no PNG, JPEG or DICOM file"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no PNG, JPEG or DICOM file"),
    "tiny": (png((5, 5)), "at least 28 a side"),
    "large": (b"\0" * (upload.MOST_BYTES + 1), "larger than 20 MB"),
    "no pixels": (dicom(PatientID="x"), "holds no image"),
    "pixels missing": (dicom(Rows=64, Columns=64, **GREY), "damaged, cut short"),
    "huge dicom": (dicom(Rows=50_000, Columns=50_000, **GREY), "50,000 x 50,000 pixels"),
    "deflated dicom": (b"\0" * 128 + b"DICM" + DeflatedExplicitVRLittleEndian.encode(), "is deflated"),
    "broken dicom": (b"\0" * 128 + b"DICM" + b"\xff" * 200, "DICOM file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_upload_gets_a_sentence(kind):
    data, sentence = BAD[kind]
    with pytest.raises(ValueError, match=sentence):
        upload.read(data)


def test_good_uploads_are_read_whatever_their_colour():
    pixels = np.full((64, 64), 7, dtype=np.uint8)
    grey = dicom(Rows=64, Columns=64, PixelData=pixels.tobytes(), **GREY)
    assert (upload.read(grey) == 7).all()
    assert (upload.read(png((64, 80))) == 128).all()
    assert upload.read(png((64, 80), "RGB")).shape == (80, 64)


def test_a_diagram_is_that_of_dvc_with_its_words_as_text():
    table = pd.DataFrame({"series": ["<script>"] * 2 + ["b"] * 2, "x": [0.0, 1, 0, 1], "y": [0.0, 1, 1, 0]})
    filled = diagrams.filled(
        table, name="a", root=ROOT, template="curve", x="x", y="y", x_label="<b>", y_label="y", title="A title"
    )
    assert [row["y"] for row in filled["data"]["values"]] == [0, 1, 1, 0]
    assert "<DVC_METRIC" not in json.dumps(filled)
    drawn = diagrams.svg(filled)
    assert ">A title<" in drawn
    assert "<script>" not in drawn
    assert "<b>" not in drawn


def test_every_plot_of_the_pipeline_has_its_template():
    plots = diagrams.described(root=ROOT)
    assert {f"plots/train/{member}.csv" for member in MEMBERS} <= set(plots)
    assert all((ROOT / f".dvc/plots/{options['template']}.json").is_file() for options in plots.values())
    assert all("\n" not in options["title"] for options in plots.values())


def test_every_plot_has_a_sentence_that_says_how_to_read_it():
    for path, options in diagrams.described(root=ROOT).items():
        assert len(options["caption"]) > 80, path
        assert options["caption"].endswith("."), path


def test_the_folder_names_its_classes(fresh):
    text = (fresh / "params.yaml").read_text(encoding="utf-8").replace("source: phantom", "source: folder")
    (fresh / "params.yaml").write_text(text, encoding="utf-8")
    assert cases.names(Disk(fresh)) == cases.Names("pneumonia", "no pneumonia", "")


def test_nothing_on_disk_is_said_by_name(tmp_path):
    assert cases.missing(Disk(Path(tmp_path))) == list(cases.NEEDED)


def test_an_answer_never_contradicts_its_probability(known, fresh):
    assert answers.answer(known, 0.19, 1) == (
        "**Flagged as possible pneumonia**: estimated chance 19 %. It flags from 17 % because a miss is priced at five"
        " false alarms."
    )
    assert answers.answer(known, 0.93, 1) == "**Pneumonia**: estimated chance 93 %."
    assert answers.answer(known, 0.02, 0) == "**No pneumonia**: estimated chance 2 %."
    path = fresh / "params.yaml"
    text = path.read_text(encoding="utf-8").replace("false_negative: 5.0", "false_negative: 0.25")
    path.write_text(text, encoding="utf-8")
    assert answers.answer(cases.collect(Disk(fresh)), 0.7, 0) == (
        "**Not flagged as pneumonia**: estimated chance 70 %. It flags only from 80 % because a false alarm is priced"
        " at four misses."
    )


def test_viewer_and_galleries_draw_maps_in_the_same_colours():
    from matplotlib import colormaps

    from tmv_lib.pipeline.pictures import ATTRIBUTION

    assert ((colormaps[ATTRIBUTION](np.arange(256))[:, :3] * 255).round() == pictures.COLOURS).all()
    for path in [*(ROOT / "demo").glob("*.py"), *(ROOT / "tmv_lib").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        named = re.findall(r"viridis|cividis|magma|inferno|jet\b", path.read_text(encoding="utf-8"))
        assert named == (["viridis"] if path.match("tmv_lib/pipeline/pictures.py") else []), path

"""Reader studies: a published analysis, laws, degenerate studies, orders by lot, and readings that cannot be."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from commands import readers as command
from studies import readers as simulated
from tmv_lib.card import readers as page
from tmv_lib.pipeline import log
from tmv_lib.pipeline.metrics import plain
from tmv_lib.pipeline.params import read
from tmv_lib.pipeline.record import Figures
from tmv_lib.readers import answer
from tmv_lib.readers.obuchowski_rockette import Jackknifed, jackknife, summarise
from tmv_lib.readers.plan import StudyParams, draw_cases, order_of, readings_done, steps_of
from tmv_lib.readers.readings import COLUMNS, VIEWER, Reading, is_of_viewer, of_viewer, read_readings, together
from tmv_lib.statistics.estimate import mean
from tmv_lib.statistics.ranking import auroc
from tmv_lib.statistics.tests import wilson_interval

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def van_dyke():
    """Jackknifed AUROCs per treatment of Van Dyke et al. (1993): ratings 1 to 5 of 69 patients without aortic
    dissection and 45 with it, by five readers of two kinds of MRI, as RJafroc distributes them (`dataset02`)."""
    table = pd.read_csv(ROOT / "tests/van_dyke.csv", dtype={"treatment_1": str, "treatment_2": str})
    found = []
    for treatment in ("treatment_1", "treatment_2"):
        rows = [
            (int(rating), of.y_true, of.reader - 1, place + 69 * of.y_true)
            for of in table.itertuples()
            for place, rating in enumerate(getattr(of, treatment))
        ]
        rating, y_true, reader, patient = np.array(rows).T
        found.append(jackknife(auroc, y_true, rating, reader=reader, patient=patient, shape=(114, 5)))
    return found


def t_interval(figure):
    found = summarise(figure)
    return [found.value, found.error, found.value - found.reach, found.value + found.reach]


# All golden values: OR-DBM MRMC 2.51 (University of Iowa), "VanDyke.lrc", trapezoidal area, jackknife.
def test_the_analysis_of_van_dyke_is_that_of_the_reference_program(van_dyke):
    cine, spin_echo = van_dyke
    assert cine.values == pytest.approx([0.91964573, 0.85877617, 0.90386473, 0.97310789, 0.82979066], abs=5e-9)
    assert spin_echo.values == pytest.approx([0.94782609, 0.90531401, 0.92173913, 0.99935588, 0.92995169], abs=5e-9)
    assert t_interval(cine) == pytest.approx([0.89703704, 0.03317360, 0.82522360, 0.96885048], abs=5e-9)
    assert t_interval(spin_echo) == pytest.approx([0.94083736, 0.02156637, 0.89413783, 0.98753689], abs=5e-9)
    assert [summarise(of).freedom for of in van_dyke] == pytest.approx([12.74, 12.71], abs=0.005)
    difference = cine.minus(spin_echo)
    assert t_interval(difference) == pytest.approx([-0.04380, 0.02075, -0.08796, 0.00036], abs=5e-6)
    assert summarise(difference).freedom == pytest.approx(15.26, abs=0.005)


def test_one_reader_of_van_dyke_is_a_fixed_reader_of_the_reference_program(van_dyke):
    first, second = (Jackknifed(of.values[:1], of.without[:, :1]) for of in van_dyke)
    assert t_interval(first) == pytest.approx([0.91964573, 0.03012552, 0.86060081, 0.97869066], abs=5e-9)
    assert t_interval(first.minus(second)) == pytest.approx([-0.02818, 0.02551, -0.07818, 0.02182], abs=5e-6)


def study(rng=None, *, readers=4, n=30, arms=("alone", "system", "deferral")):
    """Made readings: half the cases positive, every third deferred."""
    rng = np.random.default_rng(0) if rng is None else rng
    y_true = np.arange(n) % 2
    rows = []
    for arm in arms:
        for reader in range(readers):
            score = 1.5 * y_true + 0.3 * rng.normal() + rng.normal(size=n)
            rows.append(
                pd.DataFrame(
                    {
                        "reader": f"r{reader}",
                        "arm": arm,
                        "case": [f"c{k}" for k in range(n)],
                        "y_true": y_true,
                        "deferred": (np.arange(n) % 3 == 0).astype(int),
                        "answer": np.where(score > 0.75, "yes", "no"),
                        "confidence": np.clip(50 + 20 * score, 0, 100).round(),
                        "seconds": rng.uniform(5, 50, n).round(1),
                    }
                )
            )
    return pd.concat(rows, ignore_index=True)


@pytest.fixture
def write(tmp_path):
    def written(table, name="readings.csv"):
        table.to_csv(tmp_path / name, index=False)
        return tmp_path / name

    return written


def read_one(path):
    return together({path: read_readings(path)})


def analysed(write, table):
    return answer.analyse(read_one(write(table)))


def test_names_and_order_of_readers_and_rows_change_nothing(write):
    table = study()
    found = analysed(write, table)
    names = {"r0": "r2", "r1": "r3", "r2": "r1", "r3": "r0"}
    other = table.assign(reader=table["reader"].map(names)).sample(frac=1, random_state=0)
    again = analysed(write, other)
    for arm in ("alone", "system"):
        for name in answer.KINDS:
            assert again["arms"][arm][name].ends == pytest.approx(found["arms"][arm][name].ends, abs=1e-12)
    assert again["differences"]["system_minus_alone"]["auroc"].ends == pytest.approx(
        found["differences"]["system_minus_alone"]["auroc"].ends, abs=1e-12
    )


def test_arms_that_are_alike_differ_by_nothing_and_the_other_way_round_by_the_opposite(write):
    table = study(arms=("alone",))
    found = analysed(write, pd.concat([table, table.assign(arm="system")]))["differences"]["system_minus_alone"]
    for name in ("sensitivity", "specificity", "auroc"):
        value, low, high = found[name].ends
        assert value == 0
        assert high == -low == pytest.approx(wilson_interval(0, 15).high)
    table = study(arms=("alone", "system"))
    turned = table.assign(arm=table["arm"].map({"alone": "system", "system": "alone"}))
    one, other = (analysed(write, of)["differences"]["system_minus_alone"]["auroc"] for of in (table, turned))
    assert other.ends == pytest.approx((-one.value, -one.high, -one.low))


def test_figures_are_means_over_readers_and_cannot_tell_is_wrong(write):
    table = study(arms=("alone",))
    table.loc[[0, 1], "answer"] = "cannot tell"
    found = analysed(write, table)["arms"]["alone"]
    right = table["answer"] == np.where(table["y_true"] == 1, "yes", "no")
    for name, label in (("sensitivity", 1), ("specificity", 0)):
        own = right[table["y_true"] == label].groupby(table["reader"]).mean()
        assert found[name].value == pytest.approx(own.mean())
        assert [of[name] for of in found["by_reader"].values()] == pytest.approx(own.tolist())
    assert found["seconds"].value == pytest.approx(table["seconds"].mean())
    assert (found["n_readers"], found["n"], found["n_positive"], found["n_readings"]) == (4, 30, 15, 120)


def test_the_jackknife_of_a_share_is_its_binomial_variance():
    right = np.array([1.0] * 7 + [0.0] * 3)
    found = summarise(jackknife(mean, right, reader=np.zeros(10, int), patient=np.arange(10), shape=(10, 1)))
    assert found.error**2 == pytest.approx(0.7 * 0.3 / 9)  # p (1 - p) / (n - 1)
    assert np.isinf(found.freedom)


def test_images_of_one_patient_are_one_case(write):
    """Every image twice under one patient says no more; as patients of their own they would."""
    table = study(arms=("alone",), readers=1)
    named = table.assign(patient_id=table["case"])
    twice = pd.concat([named, named.assign(case=table["case"] + "b")])
    one, doubled, apart = (
        analysed(write, of)["arms"]["alone"]["auroc"].ends for of in (table, twice, twice.drop(columns="patient_id"))
    )
    assert doubled == pytest.approx(one)
    assert apart[2] - apart[1] < one[2] - one[1]


def test_perfect_readers_get_the_interval_of_as_many_trials_as_patients(write):
    table = study()
    table["answer"] = np.where(table["y_true"] == 1, "yes", "no")
    found = analysed(write, table)
    assert found["arms"]["alone"]["sensitivity"].ends == pytest.approx((1, *wilson_interval(15, 15)))
    assert found["deferred"]["sensitivity"].ends == pytest.approx((1, *wilson_interval(5, 5)))


def test_readers_who_are_equally_good_on_other_cases_are_not_taken_for_certain(write):
    table = study(readers=2, arms=("alone",))
    table["answer"] = np.where(table["y_true"] == 1, "yes", "no")
    table.loc[1, "answer"] = table.loc[33, "answer"] = "no"  # each misses one case, another one
    value, low, high = analysed(write, table)["arms"]["alone"]["sensitivity"].ends
    assert value == pytest.approx(14 / 15)
    assert low < 0.75
    assert high < 1


def test_what_cannot_be_computed_is_absent_with_its_reason(write):
    one = study(readers=1, arms=("alone",)).head(1)
    found = analysed(write, one.drop(columns="confidence"))["arms"]["alone"]
    assert found["specificity"].absent == found["sensitivity"].absent == answer.TOO_FEW
    assert found["auroc"].absent == "some readings have no confidence"
    nobody = analysed(write, study().assign(deferred=0))["deferred"]
    assert "no deferred case" in nobody["absent"]
    page.reader_page(figures_of(analysed(write, one)), "x.png")  # it can be shown all the same


def figures_of(analysis):
    return Figures(plain(analysis), "made")


def test_differences_rest_on_readers_of_both_arms(write):
    table = study()
    only = table[(table["arm"] != "system") | (table["reader"] != "r3")]
    found = analysed(write, only)["differences"]["system_minus_alone"]
    assert found["n_readers"] == 3
    expected = analysed(write, only[only["reader"] != "r3"])["differences"]["system_minus_alone"]
    assert found["sensitivity"].ends == pytest.approx(expected["sensitivity"].ends)


@pytest.mark.parametrize(
    ("arms", "arm"), [(("alone", "system", "deferral"), "deferral"), (("alone", "system"), "alone")]
)
def test_the_doctor_on_deferred_cases_is_who_knew_of_it_else_who_read_alone(write, arms, arm):
    table = study(arms=arms)
    found = analysed(write, table)["deferred"]
    rows = table[(table["arm"] == arm) & (table["deferred"] == 1)]
    assert found["arm"] == arm
    assert found["n"] == 10
    assert found["sensitivity"].value == pytest.approx((rows["answer"] == "yes")[rows["y_true"] == 1].mean())
    lines = page.params_lines(figures_of(analysed(write, table)))
    assert lines[:2] == ["deferral:", "  reader:"]
    assert [line.split(":")[0].strip() for line in lines[2:]] == ["sensitivity", "specificity"]


def test_only_final_readings_count_and_seconds_add_up(write):
    final = study(arms=("system",))
    first = final.assign(step="first", answer="no", seconds=10.0)
    found = analysed(write, pd.concat([first, final.assign(step="final")]))["arms"]["system"]
    alone = analysed(write, final)["arms"]["system"]
    assert found["sensitivity"].ends == alone["sensitivity"].ends
    assert found["seconds"].value == pytest.approx(alone["seconds"].value + 10)


PLAN = {"seed": 1, "readers": ["a", "b"], "arms": ["alone", "system", "deferral"], "design": "crossover"}
PLAN |= {"washout_days": 0, "positive": 7, "negative": 11, "folder": "readings"}
CASES = pd.DataFrame(
    {"image_id": [f"i{k}" for k in range(60)], "patient_id": [f"p{k // 2}" for k in range(60)]}
).assign(y_true=lambda table: (table.index // 2) % 2)


@pytest.mark.parametrize("design", ["crossover", "split"])
def test_an_order_holds_every_case_as_often_as_the_design_says(design):
    plan = StudyParams(**PLAN | {"design": design})
    drawn = draw_cases(plan, CASES)
    assert drawn["patient_id"].is_unique
    assert drawn["y_true"].sum() == 7
    for reader in plan.readers:
        order = order_of(plan, reader, drawn)
        assert order["position"].tolist() == list(range(1, len(order) + 1))
        sessions = order.groupby("session")
        assert all(sorted(own["case"]) == sorted(drawn["image_id"]) for _, own in sessions)
        for _, own in sessions:  # each arm has its share of both classes
            label = own["case"].map(drawn.set_index("image_id")["y_true"])
            dealt = pd.crosstab(own["arm"], label)
            assert (dealt.max() - dealt.min() <= 1).all()
        if design == "crossover":
            assert sessions.ngroups == 3
            assert not order.duplicated(["case", "arm"]).any()
        else:
            assert sessions.ngroups == 1


def test_an_order_is_that_of_seed_and_reader():
    plan = StudyParams(**PLAN)
    drawn = draw_cases(plan, CASES)
    order = order_of(plan, "a", drawn)
    more = StudyParams(**PLAN | {"readers": ["c", "b", "a"]})
    pd.testing.assert_frame_equal(order, order_of(more, "a", draw_cases(more, CASES)))
    assert not order.equals(order_of(plan, "b", drawn))
    assert not order.equals(order_of(StudyParams(**PLAN | {"seed": 2}), "a", drawn))


def test_a_study_goes_on_only_where_its_readings_are_those_of_the_plan():
    plan = StudyParams(**PLAN)
    order = order_of(plan, "a", draw_cases(plan, CASES))
    rows = [(order["case"][row], order["arm"][row], step) for row, step in steps_of(order)[:5]]
    done = pd.DataFrame(rows, columns=["case", "arm", "step"], index=range(2, 7))
    assert readings_done("a.csv", order, done) == 5
    done.loc[4, "case"] = "another"
    with pytest.raises(ValueError, match=r"a.csv: row 4 is not the reading"):
        readings_done("a.csv", order, done)


def test_an_appended_reading_is_read_and_a_torn_one_is_cut(tmp_path):
    path = tmp_path / "readings/a.csv"
    reading = Reading("a", "alone", "final", 'i,"1"', "p", 1, 0, 1, "yes", None, 1.5, "2026-03-01T09:00:00+00:00")
    log.append_row(path, COLUMNS, reading)
    path.write_bytes(path.read_bytes() + b"a,alone,fin")
    with pytest.raises(ValueError, match=r"a.csv: row 3: has no end"):
        read_readings(path)
    assert len(read_readings(path, unfinished=True)) == 1
    log.append_row(path, COLUMNS, reading._replace(case="i2", confidence=30))
    table = read_readings(path)
    assert table["case"].tolist() == ['i,"1"', "i2"]
    assert table["confidence"].isna().tolist() == [True, False]
    (tmp_path / "other.csv").write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match=r"other.csv: its first row is not reader,arm"):
        log.append_row(tmp_path / "other.csv", COLUMNS, reading)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": "maybe"}, r"readings.csv: row 4: answer 'maybe' is none of yes, no, cannot tell"),
        ({"arm": "with AI"}, r"row 4: arm 'with AI' is none of alone, system, deferral"),
        ({"y_true": "2"}, r"row 4: y_true '2' is none of 0, 1"),
        ({"confidence": "101"}, r"row 4: confidence '101' is not between 0 and 100"),
        ({"seconds": "soon"}, r"row 4: seconds 'soon' is not between 0 and inf"),
        ({"reader": ""}, r"row 4: reader '' is empty"),
        ({"case": "c1"}, r"row 4: reader 'r0' has read case 'c1' in arm alone already"),
        ({"case": "c1", "reader": "r3"}, r"row 4: y_true of case 'c1' is 0, and 1 in a row above"),
    ],
)
def test_a_bad_reading_is_named_with_its_row(write, change, said):
    table = study(arms=("alone",)).astype(object)
    if change.get("case") == "c1" and "reader" not in change:
        change = change | {"y_true": 1, "deferred": 0}
    for name, value in change.items():
        table.loc[2, name] = value
    with pytest.raises(ValueError, match=said):
        read_one(write(table))


def test_a_missing_column_is_named(write):
    with pytest.raises(ValueError, match=r"readings.csv: column arm is missing; the columns are reader, case"):
        read_one(write(study().drop(columns="arm")))


def test_the_command_writes_figures_page_and_picture(tmp_path):
    table = study()
    (tmp_path / "readings").mkdir()
    for reader, own in table.groupby("reader"):
        own.to_csv(tmp_path / f"readings/{reader}.csv", index=False)
    done = subprocess.run(
        [sys.executable, "-m", "commands.readers", "readings"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "rather than alone: sensitivity" in done.stdout
    assert "On 10 cases that the system defers (5 positive), 4 readers" in done.stdout
    assert {path.name for path in (tmp_path / "readers").iterdir()} == {"readers.json", "readers.html", "readers.png"}
    text = (tmp_path / "readers/readers.html").read_text(encoding="utf-8")
    assert "With the system and its deferrals rather than alone" in text
    assert page.ONE_READER not in text
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no CSV of readings"):
        command.files([tmp_path / "empty"])


def test_one_reader_is_said_to_be_one(write):
    assert page.ONE_READER in page.answers(figures_of(analysed(write, study(readers=1))))


def test_readings_of_the_viewer_are_of_the_run_and_of_those_who_knew_nothing(write):
    known = pd.DataFrame({"image_id": ["i1", "i2", "i3"], "patient_id": ["p1", "p2", "p3"], "y_true": [1, 0, 1]})
    known = known.assign(deferred=[True, False, True])
    rows = [("i1", "yes", "yes"), ("i2", "none", "yes"), ("i3", "cannot tell", "no"), ("i3", "no", "yes")]
    path = write(pd.DataFrame(rows, columns=VIEWER), "anna.csv")
    assert is_of_viewer(path)
    table = together({path: of_viewer(path, known)})
    told = table[["reader", "arm", "step", "case", "patient_id", "y_true", "deferred", "answer"]]
    assert told.to_numpy().tolist() == [
        ["anna", "alone", "final", "i1", "p1", 1, 1, "yes"],
        ["anna", "alone", "final", "i3", "p3", 1, 1, "no"],
    ]
    with pytest.raises(ValueError, match=r"anna.csv: row 4: image_id 'i3' is no case of the run"):
        of_viewer(path, known[:2])


def test_the_plan_that_comes_with_the_project_is_one():
    assert read(ROOT / "plan.yaml", "study", StudyParams).arms == ["alone", "system", "deferral"]


@pytest.mark.parametrize("structure", simulated.STRUCTURES)
def test_the_truth_of_a_simulated_study_is_that_of_many_readers_and_cases(structure):
    variances, mu, rng = simulated.STRUCTURES[structure], 1.5, np.random.default_rng(0)
    spread = 1 + 2 * variances.reader
    own = []
    for _ in range(40):
        study = simulated.draw(simulated.Design(20, 100, split=False), variances, mu, rng)
        positive, negative = (study.score[:, :, study.y_true == label] for label in (1, 0))
        pairs = (positive[:, :, :, None] > negative[:, :, None, :]).mean(axis=(1, 2, 3))
        own.append([pairs, (positive > 1.0).mean(axis=(1, 2))])
    for found, threshold in zip(np.mean(own, axis=0), (None, 1.0), strict=True):
        assert found == pytest.approx(simulated.truths(study, mu, spread, threshold, own=False), abs=0.012)


def test_a_split_study_shows_each_reader_a_case_once():
    study = simulated.draw(
        simulated.Design(3, 10, split=True), simulated.Structure(0.1, 0.3, 0.2, 0.2), 1, rng=np.random.default_rng(0)
    )
    assert (study.read.sum(axis=0) == 1).all()
    assert (study.read[:, :, study.y_true == 1].sum(axis=2) == 5).all()


def test_coverage_of_a_few_simulated_studies():
    cell = ("5 readers, 30 cases, crossover", "cases correlated, readers differ", 1.5)
    rows = pd.DataFrame(simulated.coverage(*cell, rng=np.random.default_rng(0), repeats=30))
    assert len(rows) == 8
    assert rows["coverage"].between(0.8, 1).all()
    assert (rows["width"] > 0).all()

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from tmv_lib.deferral.costs import Prices
from tmv_lib.failures.oddity import confident_joint
from tmv_lib.failures.training_labels import RELABEL, SECOND_READER, queues
from tmv_lib.phantom import stand_ins
from tmv_lib.phantom.plan import plan_cases
from tmv_lib.pipeline import record
from tmv_lib.pipeline.metrics import plain
from tmv_lib.pipeline.record import Figures
from tmv_lib.repairs import answer, gain
from tmv_lib.repairs.change import KINDS, changed, changes, second_reader
from tmv_lib.repairs.unseen import require_unseen
from tmv_lib.statistics.estimate import Estimate, Resampler

PRICES = Prices(5.0, 1.0, 0.25)
SEEDS, PATIENTS = 3, 60


def arms(*, mended: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, gain.Arm, gain.Arm]:
    """Three trainings that err on a fifth of the cases, of whose errors a share is mended."""
    y_true = np.tile(np.arange(PATIENTS) % 2, SEEDS)
    wrong = rng.random(y_true.size) < 0.2
    right = np.where(y_true == 1, 0.9, 0.1)
    before = np.where(wrong, 1 - right, right)
    after = np.where(wrong & (rng.random(y_true.size) < mended), right, before)
    seed, patient = np.repeat(np.arange(SEEDS), PATIENTS), np.tile(np.arange(PATIENTS), SEEDS)
    return seed, patient, gain.Arm(y_true, before, PRICES), gain.Arm(y_true, after, PRICES)


def test_a_repair_that_changes_nothing_gains_nothing():
    found = gain.obtained(*arms(mended=0.0, rng=np.random.default_rng(0)))
    for name in gain.MEASURES:
        assert found[name].value == 0
        assert found[name].low <= 0 <= found[name].high


def test_a_repair_that_mends_every_error_gains_the_error_rate():
    seed, patient, before, after = arms(mended=1.0, rng=np.random.default_rng(1))
    found = gain.obtained(seed, patient, before, after)
    wrong = (before.y_prob > 0.5) != before.y_true
    assert found["accuracy_gain"].value == pytest.approx(wrong.mean())
    cost = np.where(before.y_true == 1, 5.0, 1.0) * wrong
    assert found["failure_cost_gain"].value == pytest.approx(cost.mean())
    assert found["accuracy_gain"].low > 0
    assert found["nll_gain"].value > 0
    assert found["n"] == found["n_patients"] == PATIENTS
    assert found["n_seeds"] == SEEDS


def test_gains_change_sign_when_the_arms_are_swapped():
    seed, patient, before, after = arms(mended=0.5, rng=np.random.default_rng(2))
    forth, back = gain.obtained(seed, patient, before, after), gain.obtained(seed, patient, after, before)
    for name in gain.MEASURES:
        assert forth[name].value == pytest.approx(-back[name].value)
        assert forth[name].low == pytest.approx(-back[name].high)


def test_two_trainings_are_too_few():
    seed, patient, before, after = arms(mended=0.5, rng=np.random.default_rng(3))
    few = seed < 2
    pair = (gain.Arm(arm.y_true[few], arm.y_prob[few], PRICES) for arm in (before, after))
    assert "2 training seeds, 3 are needed" in gain.obtained(seed[few], patient[few], *pair)["accuracy_gain"].absent


def test_intervals_of_the_obtained_gain_hold_for_other_seeds_and_patients():
    """Patients and trainings vary, the true gain is known; 95 % are promised."""
    rng, covered, truth = np.random.default_rng(4), 0, 0.1
    for _ in range(200):
        of_patient, of_seed = rng.normal(0, 0.05, PATIENTS), rng.normal(0, 0.03, SEEDS)
        seed, patient = np.repeat(np.arange(SEEDS), PATIENTS), np.tile(np.arange(PATIENTS), SEEDS)
        better = np.clip(truth + of_patient[patient] + of_seed[seed], 0, 1)
        y_true = np.ones(seed.size, dtype=int)
        y_true[patient % 2 == 0] = 0
        wrong = rng.random(seed.size)
        before = np.where((wrong < 0.3) == (y_true == 1), 0.1, 0.9)
        after = np.where((wrong < 0.3 - better) == (y_true == 1), 0.1, 0.9)
        found = gain.obtained(seed, patient, *(gain.Arm(y_true, p, PRICES) for p in (before, after)))["accuracy_gain"]
        covered += found.low <= truth <= found.high
    assert covered / 200 > 0.9


def test_predicted_gains_are_those_of_turning_the_errors_round():
    y_true = np.array([1, 1, 1, 0, 0, 0] * 20)
    y_prob = np.where(np.arange(120) % 6 == 0, 0.2, np.where(y_true == 1, 0.8, 0.3))
    test = pd.DataFrame({"y_true": y_true, "y_prob": y_prob, "patient_id": np.arange(120)})
    of_kind = (y_prob > 0.5) != y_true
    resampler = Resampler(np.arange(120), 200, 0)
    found = gain.predicted(test, of_kind, "spurious feature", PRICES, resampler)
    assert found["n_errors"] == 20
    assert found["accuracy_gain"].value == pytest.approx(1 / 6)
    assert found["failure_cost_gain"].value == pytest.approx(5 / 6)
    assert found["auroc_gain"].value > 0


@pytest.mark.parametrize(
    ("expected", "found", "holds"),
    [
        (Estimate(0.1), Estimate(0.05, 0.0, 0.1), True),
        (Estimate(0.2), Estimate(0.05, 0.0, 0.1), False),
        (Estimate(absent="none"), Estimate(0.05, 0.0, 0.1), None),
        (Estimate(0.1), Estimate(absent="none"), None),
    ],
)
def test_a_promise_is_kept_within_the_interval(expected, found, holds):
    assert gain.within(expected, found) is holds


SEEN = pd.DataFrame({"image_id": ["a", "b"], "patient_id": ["p", "q"]})


@pytest.mark.parametrize(
    ("case", "image", "told"),
    [
        ({"image_id": "a", "patient_id": "r"}, 7, "image_id a is in data/prepare/cases.csv"),
        ({"image_id": "c", "patient_id": "q"}, 7, "patient_id q is in data/prepare/cases.csv"),
        ({"image_id": "c", "patient_id": "r"}, 1, "image c has the very pixels of a case"),
    ],
)
def test_no_gain_on_cases_that_a_queue_was_made_from(case, image, told):
    seen_images = [np.full((4, 4), level, np.uint8) for level in (0, 1)]
    with pytest.raises(ValueError, match=told):
        require_unseen(pd.DataFrame([case]), np.full((1, 4, 4), image, np.uint8), SEEN, seen_images)


def test_unseen_cases_pass():
    unseen = pd.DataFrame({"image_id": ["c"], "patient_id": ["r"]})
    require_unseen(unseen, np.full((1, 4, 4), 9, np.uint8), SEEN, [np.zeros((4, 4), np.uint8)])


def test_a_measured_table_of_seen_cases_is_refused(tmp_path):
    (tmp_path / "data/repairs").mkdir(parents=True)
    (tmp_path / "data/prepare").mkdir()
    SEEN.to_csv(tmp_path / "data/prepare/cases.csv", index=False)
    row = {"seed": 0, "image_id": "c", "patient_id": "q", "y_before": 1, "y_after": 1, "y_prob_before": 0.5}
    pd.DataFrame([row | {"y_prob_after": 0.5, "run": "x"}]).to_csv(tmp_path / "data/repairs/noise.csv", index=False)
    with pytest.raises(ValueError, match=r"noise\.csv: patient_id q is in data/prepare/cases\.csv"):
        record.read_measured_repair("noise", root=tmp_path)
    assert record.read_measured_repair("spurious", root=tmp_path) is None


def evidence() -> tuple[pd.DataFrame, pd.DataFrame]:
    y_true = np.arange(40) % 2
    y_prob = np.where(np.arange(40) < 4, 1 - y_true, y_true) * 0.8 + 0.1
    table = pd.DataFrame({"image_id": [f"i{k}" for k in range(40)], "y_true": y_true, "y_prob": y_prob})
    table = table.assign(model="ensemble", split="test", patient_id=table["image_id"])
    return table, table[:4].assign(kind="spurious feature")


def test_a_repair_of_another_run_is_absent_and_says_how_it_is_measured():
    told, errors = evidence()
    params = answer.RepairParams(resamples=100, seed=0)
    other = pd.DataFrame({"run": ["another"]})
    found = answer.answer(told, errors, dict.fromkeys(KINDS) | {"noise": other}, PRICES, params)
    assert found["spurious"]["predicted"]["accuracy_gain"].value == pytest.approx(0.1)
    assert found["spurious"]["obtained"]["absent"] == "not measured; `make repair KIND=spurious` measures it"
    assert "another run" in found["noise"]["obtained"]["absent"]
    assert found["noise"]["predicted"]["n_errors"] == 0


def test_what_a_repair_gained_is_said_beside_what_was_promised():
    told, errors = evidence()
    seed, patient, before, after = arms(mended=0.5, rng=np.random.default_rng(8))
    columns = {"seed": seed, "patient_id": patient.astype(str), "image_id": [f"c{k}" for k in patient]}
    measured = pd.DataFrame(columns | {"y_prob_before": before.y_prob, "y_prob_after": after.y_prob})
    measured = measured.assign(y_before=before.y_true, y_after=before.y_true, run=answer.run_of(told), cause="none")
    params = answer.RepairParams(resamples=100, seed=0)
    found = answer.answer(told, errors, dict.fromkeys(KINDS) | {"spurious": measured}, PRICES, params)
    said = answer.sentences("spurious", Figures(plain(found["spurious"]), "metrics/repair.json"))
    gained = found["spurious"]["obtained"]["accuracy_gain"].value
    assert f"accuracy: gained {gained:+.4f}" in said[1]
    assert "predicted +0.1000" in said[1]
    assert found["spurious"]["obtained"]["errors_by_cause"]["none"]["fell_by"].value == pytest.approx(gained)
    drawn = answer.rows(found)
    assert set(drawn.loc[drawn["measure"] == "spurious: accuracy", "series"]) == set(answer.SERIES.values())
    assert "not measured" in answer.sentences("noise", Figures(plain(found["noise"]), "metrics/repair.json"))[1]


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_repair_changes_parameters_that_there_are(kind):
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    change = changes(kind, params, Prices(5.0, 1.0, 0.25, sensitivity=0.9, specificity=0.9))
    new = changed(params, change)
    assert new != params
    assert {name: set(section) for name, section in new.items() if isinstance(section, dict)} == {
        name: set(section) for name, section in params.items() if isinstance(section, dict)
    }
    for key in change:
        sections, value = key.split("."), params
        for part in sections:
            assert part in value, key
            value = value[part]


def test_two_readers_and_a_third_are_right_as_often_as_a_majority():
    rng, alone = np.random.default_rng(5), 0.8
    right = (rng.random((3, 200_000)) < alone).sum(axis=0) >= 2
    two = second_reader(Prices(5.0, 1.0, 1.0, sensitivity=alone, specificity=alone))
    assert two.sensitivity == pytest.approx(right.mean(), abs=0.003)
    differ = (rng.random(200_000) < alone) != (rng.random(200_000) < alone)
    assert two.review == pytest.approx(2 + differ.mean(), abs=0.005)
    assert second_reader(PRICES) == PRICES


def test_the_queues_of_training_cases_are_what_confident_learning_counts():
    rng = np.random.default_rng(6)
    y_true = rng.integers(0, 2, 400)
    y_prob = np.clip(np.where(y_true == 1, 0.8, 0.2) + rng.normal(0, 0.2, 400), 0.01, 0.99)
    train = pd.DataFrame({"image_id": np.arange(400).astype(str), "patient_id": "p", "y_true": y_true})
    found = queues(train, y_prob)
    joint = confident_joint(y_true, y_prob)
    relabel, second = found[RELABEL], found[SECOND_READER]
    assert len(relabel) == min(joint[0, 1] + joint[1, 0], 40)
    given = np.where(relabel["y_true"] == 1, relabel["out_of_fold_prob"], 1 - relabel["out_of_fold_prob"])
    assert (np.diff(given) >= 0).all()
    assert (np.diff(np.abs(second["out_of_fold_prob"] - 0.5)) >= 0).all()
    assert not set(relabel["image_id"]) & set(second["image_id"])
    assert len(second) <= 40


def test_wrong_labels_are_found_as_an_independent_implementation_finds_them():
    cleanlab = pytest.importorskip("cleanlab.filter", reason="cleanlab is a test's oracle, requirements-dev.txt")
    rng = np.random.default_rng(7)
    y_true = rng.integers(0, 2, 300)
    y_prob = np.clip(np.where(y_true == 1, 0.8, 0.2) + rng.normal(0, 0.3, 300), 0.01, 0.99)
    issues = cleanlab.find_label_issues(
        y_true, np.column_stack([1 - y_prob, y_prob]), filter_by="confident_learning", n_jobs=1
    )
    train = pd.DataFrame({"image_id": np.arange(300).astype(str), "patient_id": "p", "y_true": y_true})
    found = set(queues(train, y_prob)[RELABEL]["image_id"])
    assert found <= set(np.flatnonzero(issues).astype(str))
    assert len(found) == min(issues.sum(), 30)


def plan(**changes) -> pd.DataFrame:
    return plan_cases(patients={"train": 400, "val": 10, "cal": 10, "test": 10}, seed=3, **changes)


def test_the_phantoms_readers_say_what_a_film_shows_but_for_slips():
    cases = plan()
    again = stand_ins.read_again(cases, n_readers=3, rng=np.random.default_rng(0))
    assert len(again) == 3 * len(cases)
    joined = again.merge(cases, on="image_id")
    clear = joined[joined["cause"] != "ambiguous"]
    slips = (clear["y_true_x"] != clear["y_clean"]).mean()
    assert slips == pytest.approx(stand_ins.SLIP, abs=0.01)
    faint = joined[joined["cause"] == "ambiguous"].groupby("image_id")["y_true_x"].mean()
    assert 0.3 < faint.mean() < 0.7


def test_unseen_phantoms_are_other_patients_of_the_same_recipe():
    recipe = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["prepare"]["phantom"]
    cases, images = stand_ins.draw("unseen", recipe, patients=40, seed=9, size=32)
    assert len(cases) == len(images)
    assert cases["image_id"].str.startswith("unseen-").all()
    assert cases["patient_id"].nunique() == 40
    assert cases["y_true"].mean() == pytest.approx(0.4, abs=0.03)

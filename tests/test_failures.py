import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cleanlab.count import compute_confident_joint
from scipy.ndimage import gaussian_filter
from scipy.special import expit
from sklearn.metrics import cohen_kappa_score

from tmv_lib.calibration.calibrators import Calibrator
from tmv_lib.failures import agreement, evidence, oddity, taxonomy

# A false negative that every model makes with confidence on a typical image with a label that others support.
PLAIN = {
    "y_true": 1,
    "y_prob": 0.05,
    "ensemble_prob": 0.05,
    "members_disagree": False,
    "border_flips": False,
    "border_misleads": 0.0,
    "border_mends": 1.0,
    "inside_prob": 0.1,
    "reference_prob": 0.1,
    "out_of_fold_prob": 0.6,
    "neighbour_agreement": 0.6,
    "distance_rank": 0.5,
    "oddity_rank": 0.5,
    "residual_rank": 0.5,
}
LABELLED = ("y_prob", "ensemble_prob", "inside_prob", "reference_prob", "out_of_fold_prob")


def test_missing_evidence_is_named():
    with pytest.raises(ValueError, match="evidence column oddity_rank is missing"):
        taxonomy.signals(pd.DataFrame([PLAIN]).drop(columns="oddity_rank"))


# What each kind looks like when it is clear.
CLEAR = {
    "spurious feature": {"reference_prob": 0.95, "inside_prob": 0.9, "border_flips": True, "border_misleads": 1.0},
    "clinical ambiguity": {"y_prob": 0.45, "ensemble_prob": 0.48, "members_disagree": True},
    "model blindness": {"oddity_rank": 0.99, "distance_rank": 0.95},
    "annotation noise": {"out_of_fold_prob": 0.02, "neighbour_agreement": 0.0, "reference_prob": 0.02},
    "undetermined": {"border_mends": 0.0},  # no border, and nothing else, mends a plain mistake
}


def clear_errors(n: int) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    cause = np.repeat(list(CLEAR), n)
    table = pd.DataFrame([PLAIN | CLEAR[kind] for kind in cause])
    for name in (*LABELLED, "neighbour_agreement", "distance_rank", "oddity_rank", "residual_rank"):
        table[name] = (table[name] + rng.normal(0, 0.03, len(table))).clip(0, 1)
    turned = rng.random(len(table)) < 0.5
    table.loc[turned, list(LABELLED)] = 1 - table.loc[turned, list(LABELLED)]
    return table.assign(y_true=np.where(turned, 0, 1)), cause.astype(object)


def test_a_score_finds_again_what_it_was_taught_and_abstains_between():
    table, cause = clear_errors(100)
    score = taxonomy.fit_score(table[::2], cause[::2], enough=0.5, provenance={})
    found = taxonomy.sort_errors(table[1::2], score=score)
    four = cause[1::2] != "undetermined"
    assert agreement.kappa(cause[1::2][four], found["best"][four]) > 0.9
    probs = found.filter(like="p_")
    assert probs.shape[1] == 5
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    assert "undetermined" not in {*found["best"], *found["runner_up"]}
    assert agreement.kappa(cause[1::2], found["kind"]) > 0.9  # of five: a plain mistake is none of the four
    assert (found["best"] != found["runner_up"]).all()
    strict = taxonomy.sort_errors(table, score=score._replace(enough=1.01))
    assert set(strict["kind"]) == {"undetermined"}


def test_the_score_is_the_logistic_model_that_it_says():
    table, cause = clear_errors(20)
    score = taxonomy.fit_score(table, cause, enough=0.6, provenance={})
    found = taxonomy.sort_errors(table, score=score)
    missed = table["y_true"].to_numpy() == 1
    for place in (np.flatnonzero(missed)[0], np.flatnonzero(~missed)[0]):
        row = taxonomy.signals(table).iloc[place].to_numpy()
        x = np.concatenate([row, row if missed[place] else 0 * row])
        utility = np.array(score.coefficients) @ ((x - score.mean) / score.scale) + score.intercept
        by_hand = np.exp(utility) / np.exp(utility).sum()
        columns = [f"p_{kind.replace(' ', '_')}" for kind in score.kinds]
        np.testing.assert_allclose(found.iloc[place][columns].astype(float), by_hand, rtol=1e-12)


def shipped() -> taxonomy.Score:
    path = Path(taxonomy.__file__).with_name("taxonomy.json")
    return taxonomy.Score(**json.loads(path.read_text(encoding="utf-8")))


def test_a_border_that_misleads_is_blamed_and_one_that_others_do_not_mend_is_not():
    table, _ = clear_errors(30)

    def blamed(**tried: float) -> np.ndarray:
        return taxonomy.sort_errors(table.assign(**tried), score=shipped())["p_spurious_feature"]

    assert (np.diff([blamed(border_misleads=share) for share in (0, 0.5, 1)], axis=0) > 0).all()
    assert (np.diff([blamed(border_mends=share) for share in (0, 0.5, 1)], axis=0) > 0).all()


def test_what_was_not_tried_counts_for_nothing():
    table, cause = clear_errors(20)
    score = taxonomy.fit_score(table, cause, enough=0.6, provenance={})
    usual = dict(zip(score.names, score.mean))
    untried, as_usual = (
        taxonomy.sort_errors(table.assign(**tried), score=score).filter(like="p_")
        for tried in (dict.fromkeys(taxonomy.TRIED, np.nan), {name: usual[name] for name in taxonomy.TRIED})
    )
    pd.testing.assert_frame_equal(untried, as_usual)
    assert untried.notna().all(axis=None)


def test_a_score_of_other_signals_is_refused_and_so_is_a_kind_without_errors():
    table, cause = clear_errors(10)
    score = taxonomy.fit_score(table, cause, enough=0.6, provenance={})
    with pytest.raises(ValueError, match="fitted to other signals"):
        taxonomy.sort_errors(table, score=score._replace(names=score.names[:-1]))
    with pytest.raises(ValueError, match="at least five errors"):
        taxonomy.fit_score(table[:44], cause[:44], enough=0.6, provenance={})


def test_no_error_at_all_has_no_kind():
    table, cause = clear_errors(10)
    score = taxonomy.fit_score(table, cause, enough=0.6, provenance={})
    assert taxonomy.sort_errors(table[:0], score=score).empty


def test_the_shipped_score_belongs_to_the_code():
    table, cause = clear_errors(30)
    four = cause != "undetermined"
    assert agreement.kappa(cause[four], taxonomy.sort_errors(table[four], score=shipped())["best"]) > 0.4
    assert shipped().provenance["phantom_seeds"]


@pytest.mark.parametrize(
    ("planted", "mends", "cause"),
    [
        ("spurious feature", ["spurious feature"], "spurious feature"),
        ("model blindness", ["spurious feature", "model blindness"], "model blindness"),
        ("clinical ambiguity", ["spurious feature"], "spurious feature"),
        ("undetermined", ["model blindness", "spurious feature"], "spurious feature"),
        ("model blindness", [], "undetermined"),
    ],
)
def test_the_cause_is_the_repair_that_mends(planted, mends, cause):
    columns = ["annotation noise", "spurious feature", "model blindness", "clinical ambiguity"]
    mended = pd.DataFrame([[name in mends for name in columns]], columns=columns)
    assert taxonomy.cause_of_errors([planted], mended).tolist() == [cause]


def test_the_site_names_what_its_calibration_mends_and_no_kind_explains():
    table, cause = clear_errors(60)
    score = taxonomy.fit_score(table, cause, enough=0.6, provenance={})
    errors = table.join(taxonomy.sort_errors(table.reset_index(drop=True), score=score).set_index(table.index))
    errors = errors.reset_index(drop=True)
    pd.testing.assert_frame_equal(taxonomy.name_site(errors.assign(site_prob=np.nan))[errors.columns], errors)
    missed = errors["y_true"] == 1
    away = errors.assign(site_prob=np.where(missed, 0.0, 1.0))
    pd.testing.assert_frame_equal(taxonomy.name_site(away)[errors.columns], errors)
    found = taxonomy.name_site(errors.assign(site_prob=np.where(missed, 0.9, 0.1)))
    yields = errors["p_undetermined"] > errors[[f"p_{kind.replace(' ', '_')}" for kind in taxonomy.SCORED]].max(axis=1)
    assert 0 < yields.sum() < len(errors)
    assert (found["kind"] == errors["kind"].mask(yields, "site")).all()
    assert (found["best"] == errors["best"].mask(yields, "site")).all()
    assert (found.loc[yields, "runner_up"] == errors.loc[yields, "best"]).all()
    assert found.loc[yields, "reason"].str.contains("calibrated at the site by other patients 90%").all()
    counted = taxonomy.tally(found)
    assert sum(counted[kind]["n"] for kind in taxonomy.KINDS) == len(errors)
    assert counted["site"]["n"] == yields.sum()
    half_way = errors.assign(site_prob=np.where(missed, 0.4, 0.6), y_prob=np.where(missed, 0.1, 0.9))
    hinted = taxonomy.name_site(half_way)
    assert (hinted["kind"] == errors["kind"]).all()
    assert (hinted["best"] == errors["best"].mask(yields, "site")).all()


def answers(logits: dict[str, list[float]]) -> pd.DataFrame:
    """What `of_answers` reads of cases whose logits these are, a column a member, and nothing that tells."""
    n = len(next(iter(logits.values())))
    cases = pd.DataFrame({"image_id": [f"i{k}" for k in range(n)], "y_true": 0, "split": "test", "map_agreement": 1.0})
    kinds = [*taxonomy.TRIED, "border_flips"]
    empty = {f"{kind}_{name}": 0.0 for kind in kinds for name in (*logits, "ensemble")}
    return cases.assign(patient_id=cases["image_id"], **empty)


@pytest.mark.parametrize("wronged", [[], ["a"], ["b"], ["a", "b"]])
def test_members_whom_the_site_makes_wrong_and_no_others_are_calibrated_there(wronged):
    shipped, there = {"a": [2.0, 1.0], "b": [-1.0, 3.0]}, {"a": [-2.0, 0.5], "b": [-3.0, -4.0]}
    logits = {"as_shipped": pd.DataFrame(shipped), "site_calibrated": pd.DataFrame(there)}
    blame = {name: "site" if name in wronged else "unclear" for name in shipped}
    found = evidence.of_calibrations(answers(shipped), logits, blame)
    assert found["site_calibrated"]["site_prob"].isna().all()  # what is calibrated there is no longer the site's
    probs = found["as_shipped"].set_index("model")["site_prob"]
    for name in shipped:
        expected = expit(there[name]) if name in wronged else [np.nan, np.nan]
        np.testing.assert_allclose(probs.loc[name], expected)
    mixed = np.mean([expit(there[name] if name in wronged else shipped[name]) for name in shipped], axis=0)
    np.testing.assert_allclose(probs.loc["ensemble"], mixed if wronged else [np.nan, np.nan])


def test_what_a_film_as_at_home_mends_is_the_sites_unless_something_else_was_planted():
    logits = dict.fromkeys(("net", "twin"), [3.0] * 5)
    cases = answers(logits)
    found = evidence.of_answers(cases, pd.DataFrame(logits))
    truth = cases[["image_id"]].assign(cause=["none", "none", "none", "spurious", "spurious"], y_clean=0)
    mended = [("i0", "site", -1.0), ("i1", "site", 1.0), ("i2", "spurious", -1.0)]
    mended += [("i3", "site", -1.0), ("i3", "spurious", -1.0), ("i4", "site", -1.0), ("i4", "spurious", 1.0)]
    repairs = dict.fromkeys(logits, pd.DataFrame(mended, columns=["image_id", "repair", "score"]))
    causes = evidence.oracle(found, truth, repairs, dict.fromkeys(logits, Calibrator("identity", {})))
    one = ["site", "undetermined", "spurious feature", "spurious feature", "site"]
    assert causes.tolist() == [*one, *one, *one]  # of both, and of their mean


def test_kappa_is_that_of_scikit_learn_with_weights_and_without():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 200)
    found = np.where(rng.random(200) < 0.6, truth, rng.integers(0, 4, 200))
    weights = rng.integers(0, 4, (5, 200)).astype(float)
    assert agreement.kappa(truth, found) == pytest.approx(cohen_kappa_score(truth, found), abs=1e-12)
    peers = [cohen_kappa_score(truth, found, sample_weight=row) for row in weights]
    np.testing.assert_allclose(agreement.kappa(truth, found, weights=weights), peers, atol=1e-12)
    assert agreement.kappa(truth, truth, weights=weights).max() <= 1
    with pytest.raises(ValueError, match="no such case"):
        agreement.kappa([], [])
    with pytest.raises(ValueError, match="only one kind"):
        agreement.kappa([1, 1], [1, 1])


def test_kappa_of_words_has_the_same_bytes_in_every_process():
    code = """
import numpy as np
from tmv_lib.failures.agreement import kappa
from tmv_lib.failures.taxonomy import KINDS
rng = np.random.default_rng(0)
truth, found = (np.array(KINDS, dtype=object)[rng.integers(0, 5, 177)] for _ in range(2))
print(kappa(truth, found, weights=rng.integers(0, 4, (300, 177))).tobytes().hex())
"""
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in "123"
    }
    assert len(told) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_confident_joint_is_cleanlabs(seed):
    rng = np.random.default_rng(seed)
    y_clean = rng.integers(0, 2, 400)
    y_true = np.where(rng.random(400) < 0.1, 1 - y_clean, y_clean)
    y_prob = expit(2 * (2 * y_clean - 1) + rng.normal(0, 1.5, 400))
    peer = compute_confident_joint(y_true, np.column_stack([1 - y_prob, y_prob]), calibrate=False)
    found = oddity.confident_joint(y_true, y_prob)
    assert found.sum() < 400  # not everybody is confident
    np.testing.assert_array_equal(found, peer)


def test_the_confident_joint_needs_both_labels():
    with pytest.raises(ValueError, match="needs both labels"):
        oddity.confident_joint([1, 1], [0.2, 0.9])


def two_clouds(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y_true = np.arange(n) % 2
    return rng.normal(size=(n, 20)) + 3 * (2 * y_true[:, None] - 1) * (np.arange(20) < 3), y_true


def test_out_of_fold_heads_contradict_a_wrong_label():
    features, y_true = two_clouds()
    given = y_true.copy()
    given[:5] = 1 - given[:5]
    probs = oddity.out_of_fold_probs(features, given, groups=np.arange(200), n_folds=5, rng=np.random.default_rng(0))
    supported = np.where(given == 1, probs, 1 - probs)
    assert supported[:5].max() < 0.5 < np.quantile(supported[5:], 0.05)


def test_neighbours_contradict_a_wrong_label():
    features, y_true = two_clouds()
    given = y_true[:10].copy()
    given[0] = 1 - given[0]
    found = oddity.neighbour_agreement(features[:10] + 1e-9, given, features[10:], y_true[10:], k=10)
    assert found[0] < 0.3
    assert found[1:].min() > 0.7


def normal_films(n: int) -> np.ndarray:
    """Smooth shades that vary, an edge that always lies there, and noise; (n, 56, 56) uint8."""
    rng = np.random.default_rng(n)
    rows, columns = np.mgrid[:56, :56] / 56
    waves = 128 + 40 * np.sin(5 * rows) * rng.normal(1, 0.2, (n, 1, 1)) + 40 * (columns > 0.5)
    return (waves + rng.normal(0, 3, (n, 56, 56))).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["patch", "residual"])
def test_a_spot_that_no_normal_has_is_odd(kind):
    images = normal_films(20)
    images[0, 30:36, 10:16] += 30
    if kind == "patch":
        odd = oddity.patch_oddity(images, normal_films(100), side=56)
    else:
        odd = oddity.residual_oddity(images, normal_films(100), components=10, side=56, seed=0)
    assert odd.argmax() == 0
    assert odd[0] > 3 * odd[1:].max()


def test_what_every_normal_has_in_one_place_is_odd_in_another():
    images = normal_films(20)
    images[0] = np.roll(images[0], 14, axis=1)  # the edge, and its mate that comes in from the side
    odd = oddity.patch_oddity(images, normal_films(100), side=56)
    assert odd[0] > 3 * odd[1:].max()


def test_patch_oddity_is_the_distance_to_the_nearest_patch_of_a_normal():
    images, normals = normal_films(6), normal_films(30)
    found = oddity.patch_oddity(images, normals, side=56)
    fine = [stack - gaussian_filter(stack.astype(np.float32), (0, 6, 6)) for stack in (images, normals)]
    places = range(1, 56 - 10, 4)

    def nearest(stack: np.ndarray, y: int, x: int, *, but: int = -1) -> float:
        bank = [
            fine[1][k, y + dy : y + dy + 10, x + dx : x + dx + 10]
            for k in range(30)
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            if k != but
        ]
        return min(np.linalg.norm(stack[y : y + 10, x : x + 10] - patch) for patch in bank)

    by_hand = np.full(6, -np.inf)
    for y in places:
        for x in places:
            usual = np.array([nearest(fine[1][k], y, x, but=k) for k in range(0, 30, 4)])
            far = np.array([nearest(image, y, x) for image in fine[0]])
            by_hand = np.maximum(by_hand, (far - usual.mean()) / usual.std())
    np.testing.assert_allclose(found, by_hand, rtol=1e-3)


def sorted_world(n: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Errors with a cause, a sorting that is right in four of five, and patients."""
    rng = np.random.default_rng(0)
    cause = rng.choice(taxonomy.SCORED, n, p=[0.1, 0.2, 0.2, 0.5])
    best = np.where(rng.random(n) < 0.8, cause, rng.choice(taxonomy.SCORED, n))
    table = pd.DataFrame({"cause": cause, "best": best, "kind": best, "y_true": rng.integers(0, 2, n)})
    return table.assign(patient_id=np.arange(n).astype(str)), cause


def test_agreement_counts_what_mends_against_what_is_called():
    errors, cause = sorted_world(300)
    errors.loc[:9, "cause"] = "undetermined"
    found = agreement.agreement(errors, n_resamples=100, seed=0)
    assert (found["n"], found["mended_by_no_repair"]) == (290, 10)
    assert found["kappa"].value == pytest.approx(cohen_kappa_score(cause[10:], errors["best"][10:]))
    assert found["kappa"].low < found["kappa"].value < found["kappa"].high
    crossed = agreement.confusion(errors, "best")
    assert crossed.to_numpy().sum() == 300
    for kind in taxonomy.KINDS:
        assert found[kind]["n"] == crossed.loc[kind].sum()
        assert found[kind]["called model blindness"] == crossed.loc[kind, "model blindness"]
    counted = taxonomy.tally(errors)
    assert counted["n_errors"] == counted["false_negative"] + counted["false_positive"] == 300
    assert counted["model blindness"]["n"] == crossed["model blindness"].sum()


def test_shuffled_kinds_have_the_distribution_of_no_agreement():
    errors, _ = sorted_world(200)
    columns = [errors[name].to_numpy() for name in ("cause", "best", "patient_id")]
    found = agreement.shuffled_kappa(*columns, rng=np.random.default_rng(0))
    assert found["p_value"] == 1 / 1000
    assert abs(found["mean"]) < 0.01
    rng = np.random.default_rng(1)
    plain = [cohen_kappa_score(columns[0], rng.permutation(columns[1])) for _ in range(999)]
    assert found["p95"] == pytest.approx(np.quantile(plain, 0.95), abs=0.02)
    noise = [columns[0], rng.permutation(columns[1]), columns[2]]
    assert agreement.shuffled_kappa(*noise, rng=rng)["p_value"] > 0.05
    assert "only one kind is named" in agreement.shuffled_kappa(["a"] * 5, ["a"] * 5, range(5), rng=rng)["absent"]


def test_a_case_that_three_models_err_on_is_no_more_proof_than_one():
    rng = np.random.default_rng(2)
    causes, kinds = (rng.choice(taxonomy.SCORED, 20) for _ in range(2))
    p_values = []
    for _ in range(200):
        kinds = rng.permutation(kinds)
        columns = (np.repeat(of, 3) for of in (causes, kinds, np.arange(20)))
        p_values.append(agreement.shuffled_kappa(*columns, n_permutations=99, rng=rng)["p_value"])
    assert np.mean(np.array(p_values) <= 0.1) < 0.16  # shuffled error by error it is 0.25 and more


def test_repairs_mend_answers_and_of_wrong_labels_the_label():
    y_true, y_prob = np.array([0, 0, 1, 1]), np.array([0.1, 0.9, 0.2, 0.8])
    wrong = np.array([False, True, True, False])
    for kind in taxonomy.KINDS:
        y, p = taxonomy.mended(y_true, y_prob, wrong, kind=kind)
        assert ((p > 0.5) == y).all()
        assert (y == y_true).all() == (kind != "annotation noise")
        assert taxonomy.auroc_gain(y_true, y_prob, y, p) == pytest.approx(0.5)  # of 4 pairs 2 were in order


def test_a_spread_shows_the_most_typical_and_the_least_sure_in_order():
    likely = pd.Series([0.7, 0.9, 0.6, 0.8, 0.65, 0.99, 0.61], index=list("abcdefg"))
    assert taxonomy.spread(likely, typical=3, unsure=2) == ["f", "b", "d", "g", "c"]
    assert taxonomy.spread(likely[:2], typical=3, unsure=2) == ["b", "a"]
    assert taxonomy.spread(likely[:0], typical=3, unsure=2) == []


def test_a_signal_that_knows_a_kind_tells_it_and_noise_does_not():
    errors, cause = sorted_world(400)
    rng = np.random.default_rng(1)
    signals = pd.DataFrame({"knows": (cause == "model blindness") * 2.0, "noise": rng.random(400), "gaps": np.nan})
    signals["gaps"] = signals["knows"].where(rng.random(400) < 0.5)
    groups = errors["patient_id"].to_numpy()
    found = agreement.discriminate(signals, cause, groups=groups, n_resamples=100, seed=0)
    assert found["knows"]["model blindness"]["auroc"].value == 1
    assert found["knows"]["spurious feature"]["auroc"].value < 0.5  # the others are low in it
    for kind in taxonomy.SCORED:
        _, low, high = found["noise"][kind]["auroc"].ends
        assert low < 0.5 < high
        assert found["gaps"][kind]["n"] < found["knows"][kind]["n"] == (cause == kind).sum()
    few = agreement.discriminate(signals[:60], cause[:60], groups=groups[:60], n_resamples=100, seed=0)
    assert few["noise"]["clinical ambiguity"]["auroc"].low is None  # fewer than 20 patients
    nobody = agreement.discriminate(
        signals[cause != "model blindness"],
        cause[cause != "model blindness"],
        groups=groups[cause != "model blindness"],
        n_resamples=100,
        seed=0,
    )
    assert nobody["noise"]["model blindness"]["auroc"].absent

from itertools import permutations
from time import process_time

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from tmv_lib.deferral.selective import (
    augrc,
    aurc,
    best_start,
    cases_needed,
    certify_ltt,
    coverage_grid,
    eaurc,
    risk_coverage_curve,
)

AREAS = [aurc, eaurc, augrc]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tied_cases(rng, n=300):
    confidence = np.round(rng.random(n), 1)
    return (rng.random(n) > 0.5 + confidence / 2).astype(int), confidence


def sampled_site(rng, n, true_risk):
    """Confidence uniform in [0, 1]; true_risk(c) is the chance of an error at confidence c."""
    confidence = rng.random(n)
    return (rng.random(n) < true_risk(confidence)).astype(int), confidence


def test_curve_known_answer():
    curve = risk_coverage_curve([1, 0, 0, 1, 0], [0.3, 0.9, 0.5, 0.5, 0.7])
    np.testing.assert_allclose(curve.coverage, [1 / 5, 2 / 5, 4 / 5, 1])
    np.testing.assert_allclose(curve.selective_risk, [0, 0, 1 / 4, 2 / 5])


def test_a_weight_is_so_many_copies_of_a_case(rng):
    error, confidence = tied_cases(rng)
    copies = rng.integers(1, 4, error.size)
    weighted = risk_coverage_curve(error, confidence, weights=copies)
    repeated = risk_coverage_curve(np.repeat(error, copies), np.repeat(confidence, copies))
    np.testing.assert_allclose(weighted.coverage, repeated.coverage)
    np.testing.assert_allclose(weighted.selective_risk, repeated.selective_risk)


def test_curve_agrees_with_the_rule_confidence_at_least_threshold(rng):
    error, confidence = tied_cases(rng)
    thresholds = np.unique(confidence)[::-1]
    coverage, risk = risk_coverage_curve(error, confidence)
    np.testing.assert_allclose(coverage, [np.mean(confidence >= t) for t in thresholds])
    np.testing.assert_allclose(risk, [error[confidence >= t].mean() for t in thresholds])


@pytest.mark.parametrize("area", AREAS)
def test_shuffling_rows_changes_nothing(area, rng):
    error, confidence = tied_cases(rng)
    order = rng.permutation(error.size)
    assert area(error[order], confidence[order]) == area(error, confidence)


@pytest.mark.parametrize("area", AREAS)
def test_only_the_order_of_the_confidence_matters(area, rng):
    error, confidence = tied_cases(rng)
    assert area(error, 100 * confidence**3 - 7) == pytest.approx(area(error, confidence), abs=1e-15)


@pytest.mark.parametrize("area", AREAS)
def test_perfect_confidence_has_the_least_area_and_its_reverse_the_largest(area, rng):
    error, confidence = tied_cases(rng)
    least, most = area(error, -error), area(error, error)
    assert least < area(error, confidence) < most
    assert eaurc(error, -error) == 0


def test_aurc_is_the_mean_over_all_orders_of_tied_cases():
    error, confidence = np.array([1, 0, 1, 0, 0, 1]), np.array([0.5, 0.5, 0.9, 0.5, 0.2, 0.2])
    ranks = np.arange(1, 7)
    areas = [
        np.mean(np.cumsum(error[list(order)]) / ranks)
        for order in permutations(range(6))
        if np.all(np.diff(confidence[list(order)]) <= 0)
    ]
    assert len(areas) == 1 * 6 * 2
    assert aurc(error, confidence) == pytest.approx(np.mean(areas), abs=1e-14)


def test_aurc_without_ties_is_the_mean_running_error_rate(rng):
    error, confidence = (rng.random(500) < 0.2).astype(int), rng.random(500)
    running = np.cumsum(error[np.argsort(-confidence)]) / np.arange(1, 501)
    assert aurc(error, confidence) == pytest.approx(running.mean(), abs=1e-13)


def test_constant_confidence_is_a_random_order():
    error = np.array([1, 0, 0, 1, 0])
    assert aurc(error, np.zeros(5)) == pytest.approx(0.4, abs=1e-15)
    assert augrc(error, np.zeros(5)) == pytest.approx(0.4 / 2, abs=1e-15)


def test_augrc_identity_with_the_auroc_of_the_confidence(rng):
    error, confidence = tied_cases(rng)
    accuracy = 1 - error.mean()
    auroc_f = roc_auc_score(1 - error, confidence)
    identity = (1 - auroc_f) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert augrc(error, confidence) == pytest.approx(identity, abs=1e-14)


def test_augrc_is_the_trapezoid_over_distinct_thresholds(rng):
    error, confidence = tied_cases(rng)
    coverage, risk = risk_coverage_curve(error, confidence)
    joint = np.append(0, risk * coverage)
    assert augrc(error, confidence) == pytest.approx(np.trapezoid(joint, np.append(0, coverage)), abs=1e-14)


@pytest.mark.parametrize(("wrong", "areas"), [(0, (0, 0, 0)), (1, (1, 0, 0.5))])
def test_no_errors_and_nothing_but_errors(wrong, areas):
    found = [area([wrong] * 4, [0.1, 0.2, 0.2, 0.9]) for area in AREAS]
    assert found == pytest.approx(areas, abs=1e-15)


@pytest.mark.parametrize("area", AREAS)
def test_weights_count_cases_as_often_as_they_were_drawn(area, rng):
    error, confidence = tied_cases(rng, 60)
    counts = rng.multinomial(60, np.full(60, 1 / 60), size=5)
    repeated = [area(np.repeat(error, row), np.repeat(confidence, row)) for row in counts]
    np.testing.assert_allclose(area(error, confidence, weights=counts), repeated, atol=1e-13)


def test_cases_needed_known_answers():
    assert cases_needed(0.05, 0.05) == 59  # 0.95^58 = 0.0510, 0.95^59 = 0.0485
    assert cases_needed(0.01, 0.05) == 299
    assert cases_needed(0.5, 0.25) == 2  # 0.5^2 = 0.25 exactly
    needed = {a: [cases_needed(a, 0.025, errors) for errors in (0, 1, 2, 3, 5)] for a in (0.05, 0.1, 0.02)}
    assert needed[0.05] == [72, 110, 142, 173, 230]
    assert needed[0.10] == [36, 54, 70, 85, 114]
    assert needed[0.02] == [183, 277, 359, 436, 581]


@pytest.mark.parametrize("errors", [0, 1, 4])
def test_cases_needed_are_just_enough(errors):
    n = cases_needed(0.08, 0.1, errors)
    # Clopper & Pearson 1934: the exact upper bound of the proportion
    of_n, of_fewer = (binomtest(errors, m, alternative="less").proportion_ci(0.9).high for m in (n, n - 1))
    assert of_n <= 0.08 < of_fewer
    for count, enough in ((n, True), (n - 1, False)):
        error, confidence = np.arange(count) < errors, np.ones(count)
        assert certify_ltt(error, confidence, risk=0.08, delta=0.1, grid=[1.0]).certified is enough


def test_ltt_walks_to_the_last_threshold_before_the_first_failure():
    # 100 sure cases without error, 50 with 10 errors, 1000 without: the last would pass, but lies behind a failure
    confidence = np.repeat([0.9, 0.5, 0.1], [100, 50, 1000])
    error = np.zeros(1150)
    error[100:110] = 1
    found = certify_ltt(error, confidence, risk=0.05, delta=0.05, grid=[0.1, 0.5, 0.9, 0.7])
    assert found.certified is True
    assert (found.threshold, found.errors, found.n_accepted, found.risk_bound) == (0.7, 0, 100, 0.05)
    assert found.coverage == pytest.approx(100 / 1150)
    assert found.p_value == pytest.approx(0.95**100)
    assert certify_ltt(error, confidence, risk=0.05, delta=0.05, grid=[0.1]).coverage == 1


def test_ltt_first_step_with_too_few_cases_certifies_nothing():
    confidence = np.linspace(0, 1, 1000)
    found = certify_ltt(np.zeros(1000), confidence, risk=0.05, delta=0.05, grid=[0.95, 0.5, 0.0])
    assert found.certified is False
    assert found.threshold == np.inf
    assert not (confidence >= found.threshold).any()
    assert certify_ltt(np.zeros(1000), confidence, risk=0.05, delta=0.05, grid=[0.9, 0.5, 0.0]).coverage == 1


def test_certificate_describes_the_rule_that_it_hands_out(rng):
    error, confidence = sampled_site(rng, 500, lambda c: 0.3 * (1 - c) ** 2)
    options = {"grid": np.linspace(0, 0.7, 30)}
    found = certify_ltt(error, confidence, risk=0.06, delta=0.1, **options)
    accepted = confidence >= found.threshold
    assert found.certified is True
    assert 0.3 < found.coverage == accepted.mean()
    assert (found.n_accepted, found.errors) == (accepted.sum(), error[accepted].sum())
    assert found.risk_bound <= 0.06
    order = rng.permutation(error.size)
    assert certify_ltt(error[order], confidence[order], risk=0.06, delta=0.1, **options) == found


def test_hopeless_or_few_cases_are_not_certified():
    options = {"grid": [0.0]}
    for error in (np.zeros(1), np.zeros(40), np.ones(500)):
        found = certify_ltt(error, np.linspace(0, 1, error.size), risk=0.05, delta=0.05, **options)
        assert found == (False, np.inf, 0, 0, 0, 1, 1)


WORLDS = {  # chance of an error at confidence c, and the true error rate of those with at least c
    "just above the limit": (lambda c: np.full_like(c, 0.101), lambda t: 0.101),
    "falling with confidence": (lambda c: 0.4 * (1 - c), lambda t: 0.2 * (1 - t)),
    "steep": (lambda c: (c < 0.5) * 0.9 + 0.02, lambda t: 0.02 + 0.9 * max(0, 0.5 - t) / (1 - t)),
}


@pytest.mark.parametrize("world", WORLDS)
def test_guarantee_fails_no_more_often_than_delta(world, rng):
    chance, risk_above = WORLDS[world]
    n_sites, delta, limit = 1000, 0.1, 0.1
    options = {"grid": np.linspace(0, 0.75, 31)}
    found = [certify_ltt(*sampled_site(rng, 800, chance), risk=limit, delta=delta, **options) for _ in range(n_sites)]
    violations = [one.certified and risk_above(one.threshold) > limit for one in found]
    assert np.mean(violations) <= delta + 3 * np.sqrt(delta * (1 - delta) / n_sites)
    if world != "just above the limit":
        assert np.mean([one.certified for one in found]) > 0.8


def test_grid_accepts_from_start_to_everybody(rng):
    confidence = rng.random(400)
    grid = coverage_grid(confidence, start=0.25, n_steps=4)
    assert [np.mean(confidence >= t) for t in grid] == pytest.approx([0.25, 0.5, 0.75, 1], abs=1e-12)
    assert coverage_grid(np.ones(10), start=0.5, n_steps=6).tolist() == [1.0]


@pytest.mark.parametrize(
    ("error", "confidence", "words"),
    [
        ([0, 2], [0.1, 0.2], "error must hold 0 and 1"),
        ([0, 1], [0.1], "confidence must hold one value a case"),
        ([0, 1], [0.1, np.nan], "confidence must be finite"),
        ([], [], "at least one case"),
    ],
)
def test_bad_cases(error, confidence, words):
    calls = [*AREAS, risk_coverage_curve]
    calls.append(lambda e, c: certify_ltt(e, c, risk=0.1, delta=0.1, grid=[0.5]))
    for call in calls:
        with pytest.raises(ValueError, match=words):
            call(error, confidence)


@pytest.mark.parametrize("outside", [0.0, 1.0, -0.1, np.nan])
def test_risk_and_delta_out_of_range(outside):
    for risk, delta, name in ((outside, 0.1, "risk"), (0.1, outside, "delta")):
        with pytest.raises(ValueError, match=name):
            certify_ltt([0, 1], [0.1, 0.2], risk=risk, delta=delta, grid=[0.5])
        with pytest.raises(ValueError, match=name):
            cases_needed(risk, delta)


def test_other_bad_values():
    with pytest.raises(ValueError, match="errors must be at least 0"):
        cases_needed(0.1, 0.1, -1)
    with pytest.raises(ValueError, match="grid must be finite"):
        certify_ltt([0, 1], [0.1, 0.2], risk=0.1, delta=0.1, grid=[np.inf])
    with pytest.raises(ValueError, match="start"):
        coverage_grid([0.1, 0.2], start=0, n_steps=3)
    with pytest.raises(ValueError, match="n_steps"):
        coverage_grid([0.1, 0.2], start=0.5, n_steps=0)


def test_a_start_leaves_room_for_the_errors_that_other_cases_show():
    confidence = np.linspace(0, 1, 1000)
    needed = [cases_needed(0.05, 0.1, errors) / 1000 for errors in range(11)]
    assert best_start(np.zeros(1000), confidence, n=1000, risk=0.05, delta=0.1) in needed
    assert best_start(np.zeros(1000), confidence, n=20, risk=0.05, delta=0.1) == 1


def test_mapie_walks_as_far():
    control = pytest.importorskip("mapie.risk_control")
    for seed in range(20):
        error, confidence = sampled_site(np.random.default_rng(seed), 500, lambda c: 0.3 * (1 - c) ** 2)
        grid = np.linspace(0.8, 0, 41)
        accepted = [confidence >= t for t in grid]
        p_values = np.array(
            [binomtest(int(error[a].sum()), int(a.sum()), 0.06, alternative="less").pvalue for a in accepted]
        )
        rejected = control.control_fwer(p_values, 0.1, fwer_method="fixed_sequence")
        ours = certify_ltt(error, confidence, risk=0.06, delta=0.1, grid=grid)
        assert ours.threshold == (grid[max(rejected)] if len(rejected) else np.inf)


def test_a_million_cases_take_seconds(rng):
    error, confidence = sampled_site(rng, 1_000_000, lambda c: 0.2 * (1 - c))
    start = process_time()
    risk_coverage_curve(error, confidence)
    for area in AREAS:
        area(error, confidence)
    assert certify_ltt(error, confidence, risk=0.05, delta=0.1, grid=np.linspace(0, 0.9, 20)).certified
    assert process_time() - start < 10

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score
from statsmodels.stats.multitest import multipletests

from tmv_lib.statistics.estimate import Estimate, Resampler
from tmv_lib.uncertainty.detection import FEWEST, adjusted_auroc, detector, detectors, given_confidence

N = 1200
PATIENTS = np.arange(N) // 2


def world(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors as often as calibrated logits say, the logits, and a third of the cases to fit on."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 1.5, N)
    return (rng.random(N) < expit(-np.abs(logit))).astype(float), logit, np.arange(N) % 3 == 0


def resampler(groups: np.ndarray) -> Resampler:
    return Resampler(groups, 400, seed=1)


def compared(signals: dict, *, groups: np.ndarray = PATIENTS, **changed) -> dict:
    error, logit, fit = world()
    arguments = {"error": error, "logit": logit, "called": logit > 0, "fit": fit, "test": ~fit, **changed}
    return detectors(**arguments, signals=signals, resampler=resampler(groups))


def test_what_confidence_knows_already_finds_errors_and_adds_nothing():
    _, logit, _ = world()
    entry = compared({"doubt": -np.abs(logit)})["doubt"]
    assert entry["finds_errors"] == "supported"
    assert entry["adds_to_confidence"] == "not supported"
    assert entry["gain_over_margin"].value == 0
    assert abs(entry["likelihood_gain_given_confidence"].value) < 1e-3


def test_what_knows_nothing_finds_and_adds_nothing():
    entry = compared({"noise": np.random.default_rng(5).random(N), "constant": np.ones(N)})
    for name in entry:
        assert entry[name]["finds_errors"] == entry[name]["adds_to_confidence"] == "not supported"
    for name in ("adjusted_error_auroc", "pooled_error_auroc"):
        assert entry["constant"][name].value == 0.5


def test_what_knows_the_errors_adds_whichever_way_it_points():
    error, _, _ = world()
    hint = error + np.random.default_rng(5).normal(0, 1, N)
    found = compared({"hint": hint, "against": -hint})
    assert found["hint"]["finds_errors"] == "supported"
    assert found["against"]["finds_errors"] == "the opposite"
    for entry, sign in ((found["hint"], 1), (found["against"], -1)):
        assert entry["adds_to_confidence"] == "supported"
        assert entry["slope_given_confidence"] * sign > 0.5
    for name in ("auroc_gain_given_confidence", "likelihood_gain_given_confidence"):
        assert found["hint"][name].value == pytest.approx(found["against"][name].value)


def mixture(*, shift: float, strength: float, n: int = 4000) -> tuple[np.ndarray, ...]:
    """Errors, a signal and the named class: positive calls are wrong far more often, and the signal is larger there
    by `shift`; within either class it is larger where the answer is wrong by `strength` (both in standard deviations).
    """
    rng = np.random.default_rng(3)
    called = (np.arange(n) % 2).astype(float)
    error = (rng.random(n) < np.where(called == 1, 0.4, 0.05)).astype(float)
    return error, rng.normal(size=n) + shift * called + strength * error, called


def detected(error: np.ndarray, signal: np.ndarray, called: np.ndarray, *, rival: np.ndarray | None = None) -> dict:
    return detector(error, signal, called=called, resampler=resampler(np.arange(len(error))), rival=rival)


def test_a_signal_that_only_knows_the_named_class_finds_nothing():
    entry = detected(*mixture(shift=2.0, strength=0.0))
    # of a pair, the error is called positive in 8 of 9 and the right answer in 12 of 31; Phi(2 / sqrt 2) = 0.921
    apart = (8 / 9) * (19 / 31) - (1 / 9) * (12 / 31)
    assert entry["pooled_error_auroc"].value == pytest.approx(0.5 + apart * (0.921 - 0.5), abs=0.03)
    assert entry["pooled_error_auroc"].low > 0.65
    assert entry["adjusted_error_auroc"].value == pytest.approx(0.5, abs=0.03)
    assert entry["adjusted_error_auroc"].p_value > 0.01
    for name in ("called_positive", "called_negative"):
        assert entry[name]["error_auroc"].value == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0])
def test_a_signal_that_works_within_both_is_known_whatever_the_shift_between_them(shift):
    entry = detected(*mixture(shift=shift, strength=1.0))
    known = 0.7602  # Phi(1 / sqrt 2)
    assert entry["adjusted_error_auroc"].value == pytest.approx(known, abs=0.02)
    # this sample lies 1.95 standard errors below what is known: its interval ends about there
    assert entry["adjusted_error_auroc"].low < known < entry["adjusted_error_auroc"].high + 0.002
    assert entry["adjusted_error_auroc"].p_value < 0.01
    if shift == -3.0:
        assert entry["pooled_error_auroc"].high < 0.5  # pooled, the very same signal points the wrong way


def test_the_adjusted_auroc_is_the_mean_placement_of_errors_among_the_right_answers_called_alike():
    error, signal, called = mixture(shift=1.0, strength=0.5, n=300)
    signal = np.round(signal, 1)  # with ties
    places = []
    for k in np.flatnonzero(error):
        rivals = signal[(error == 0) & (called == called[k])]
        places.append(np.mean((rivals < signal[k]) + (rivals == signal[k]) / 2))
    assert adjusted_auroc(error, signal, called) == pytest.approx(np.mean(places), rel=1e-12)
    within = [roc_auc_score(error[called == c], signal[called == c]) for c in (0, 1)]
    shares = [error[called == c].sum() / error.sum() for c in (0, 1)]
    assert adjusted_auroc(error, signal, called) == pytest.approx(np.dot(shares, within), rel=1e-12)
    times = np.random.default_rng(0).integers(0, 3, (5, 300))
    repeated = [adjusted_auroc(np.repeat(error, t), np.repeat(signal, t), np.repeat(called, t)) for t in times]
    np.testing.assert_allclose(adjusted_auroc(error, signal, called, weights=times), repeated, rtol=1e-12)
    changed = np.exp(signal) + 100 * called  # any rising change within a class
    assert adjusted_auroc(error, changed, called) == pytest.approx(np.mean(places), rel=1e-12)


def test_a_class_with_too_few_errors_is_absent_and_the_other_speaks_alone():
    error, signal, called = mixture(shift=1.0, strength=1.0, n=600)
    error[np.flatnonzero((called == 0) & (error == 1))[FEWEST - 1 :]] = 0
    entry = detected(error, signal, called, rival=-signal)
    assert entry["rests_on"] == "called_positive"
    reason = entry["called_negative"]["error_auroc"].absent
    assert entry["called_negative"]["error_auroc"] == Estimate(absent=reason)
    assert reason.startswith(f"{int(error[called == 0].sum())} errors and ")
    assert reason.endswith("right answers among cases called negative: at least 20 of each are needed")
    assert entry["adjusted_error_auroc"].value == entry["called_positive"]["error_auroc"].value
    assert entry["gain_over_margin"].value == pytest.approx(2 * entry["adjusted_error_auroc"].value - 1)
    one = detected(error, signal, np.ones(600))
    assert (one["rests_on"], one["called_negative"]["n"]) == ("called_positive", 0)
    assert one["adjusted_error_auroc"].value == one["pooled_error_auroc"].value


def test_a_perfect_detector_has_the_interval_of_its_few_errors():
    error, _, called = mixture(shift=0.0, strength=0.0, n=1000)
    entry = detected(error, error, called)
    assert entry["adjusted_error_auroc"].value == entry["adjusted_error_auroc"].high == 1
    lows = [entry[name]["error_auroc"].low for name in ("called_positive", "called_negative")]
    assert min(lows) < entry["adjusted_error_auroc"].low < max(lows) < 1


def test_figures_are_scikit_learns_and_p_values_statsmodels():
    error, logit, fit = world()
    rng = np.random.default_rng(2)
    signals = {name: rng.normal(size=N) + strength * error for name, strength in (("a", 0), ("b", 0.2), ("c", 0.3))}
    found = compared(signals)
    called = logit > 0
    for name, signal in signals.items():
        margin = adjusted_auroc(error[~fit], -np.abs(logit[~fit]), called[~fit])
        for key, label in (("called_positive", True), ("called_negative", False)):
            here = ~fit & (called == label)
            expected = roc_auc_score(error[here], signal[here])
            assert found[name][key]["error_auroc"].value == pytest.approx(expected, rel=1e-12)
        pooled = roc_auc_score(error[~fit], signal[~fit])
        assert found[name]["pooled_error_auroc"].value == pytest.approx(pooled, rel=1e-12)
        precision = average_precision_score(error[~fit], signal[~fit])
        assert found[name]["pooled_average_precision"].value == pytest.approx(precision, rel=1e-12)
        gain = found[name]["adjusted_error_auroc"].value - margin
        assert found[name]["gain_over_margin"].value == pytest.approx(gain, rel=1e-9)
    for name in ("adjusted_error_auroc", "gain_over_margin", "likelihood_gain_given_confidence"):
        expected = multipletests([entry[name].p_value for entry in found.values()], method="holm")[1]
        np.testing.assert_allclose([entry[name].p_value_holm for entry in found.values()], expected)


def test_a_signal_named_twice_is_one_test_and_the_margin_in_disguise_none():
    error, logit, _ = world()
    rng = np.random.default_rng(2)
    a, b = (rng.normal(size=N) + 0.25 * error for _ in range(2))
    twice = compared({"a": a, "again": np.exp(a), "b": b, "doubt": 5 - np.abs(logit)})
    assert twice["a"]["adjusted_error_auroc"].p_value_holm == twice["again"]["adjusted_error_auroc"].p_value_holm
    for figure, family in (("adjusted_error_auroc", ("a", "b", "doubt")), ("gain_over_margin", ("a", "b"))):
        distinct = [twice[name][figure] for name in family]
        expected = multipletests([one.p_value for one in distinct], method="holm")[1]
        np.testing.assert_allclose([one.p_value_holm for one in distinct], expected)
    assert twice["doubt"]["gain_over_margin"].p_value_holm is None
    assert twice["doubt"]["over_margin"] == "no worthwhile gain"


def test_better_than_the_margin_needs_a_worthwhile_gain_and_not_only_a_sure_one():
    rng = np.random.default_rng(0)
    n = 10_000
    logit = rng.normal(0, 1.5, n)
    error = (rng.random(n) < expit(-np.abs(logit))).astype(float)
    hair = -np.abs(logit) + 0.03 * error  # AUROC above the margin's by about 0.01
    much = -np.abs(logit) + 1.0 * error
    arguments = {"called": logit > 0, "fit": np.arange(n) < 400, "test": np.arange(n) >= 400}
    signals = {"hair": hair, "much": much, "against": -much, "noise": rng.random(n)}
    found = detectors(error, logit, signals, **arguments, resampler=Resampler(np.arange(n), 200, seed=0))
    gain = found["hair"]["gain_over_margin"]
    assert 0 < gain.low < gain.high < 0.02
    assert gain.p_value_holm < 0.05
    answers = {name: entry["over_margin"] for name, entry in found.items()}
    assert answers == {"hair": "no worthwhile gain", "much": "better", "against": "worse", "noise": "worse"}


def test_the_regressions_are_the_penalised_maximum_of_the_likelihood():
    error, logit, fit = world()
    signal = np.random.default_rng(5).random(N)
    called = (logit > 0).astype(float)
    answers = given_confidence(error, logit, signal, called=called, fit=fit)
    known = [called, np.abs(logit)]
    for columns, answer in ((known, answers.confidence), ([*known, signal], answers.both)):
        table = np.stack([(column - column[fit].mean()) / column[fit].std() for column in columns], axis=1)

        def loss(beta: np.ndarray, table: np.ndarray = table) -> float:
            z = beta[0] + table[fit] @ beta[1:]
            return np.logaddexp(0, (1 - 2 * error[fit]) * z).sum() + (beta[1:] ** 2).sum() / 2

        beta = minimize(loss, np.zeros(1 + len(columns)), tol=1e-10).x
        np.testing.assert_allclose(answer, beta[0] + table @ beta[1:], atol=2e-3)


def test_the_named_class_is_known_before_the_signal():
    rng = np.random.default_rng(4)
    called = (np.arange(N) % 2).astype(float)
    error = (rng.random(N) < np.where(called == 1, 0.5, 0.1)).astype(float)
    logit = np.where(called == 1, 1, -1) * rng.uniform(0.5, 2, N)
    entry = compared({"echo": called + rng.normal(0, 0.1, N)}, error=error, logit=logit, called=called)["echo"]
    assert entry["pooled_error_auroc"].value > 0.7
    assert entry["finds_errors"] == entry["adds_to_confidence"] == "not supported"


def test_what_happens_on_test_teaches_nothing():
    error, logit, fit = world()
    signal = np.random.default_rng(5).random(N)
    one = given_confidence(error, logit, signal, called=logit > 0, fit=fit)
    other = given_confidence(np.where(fit, error, 1 - error), logit, signal, called=logit > 0, fit=fit)
    np.testing.assert_array_equal(one.both, other.both)


def test_separated_errors_have_a_finite_answer():
    error, logit, fit = world()
    assert np.isfinite(given_confidence(error, logit, error, called=logit > 0, fit=fit).both).all()


def test_a_signal_is_measured_where_there_is_one():
    error, _, fit = world()
    signal = np.where(np.arange(N) < 600, np.random.default_rng(5).random(N), np.nan)
    entry = compared({"half": signal})["half"]
    assert entry["n"] == (~fit[:600]).sum()
    assert entry["n_errors"] == error[:600][~fit[:600]].sum()
    nothing = compared({"none": np.full(N, np.nan)})["none"]
    assert (nothing["n"], nothing["finds_errors"]) == (0, "cannot be tested")
    assert nothing["adjusted_error_auroc"] == Estimate(absent="no test case has this signal")


def test_too_few_errors_are_named():
    error, _, fit = world()
    signal = np.random.default_rng(5).random(N)
    few = np.where(fit, 0.0, error)
    few[np.flatnonzero(fit)[:19]] = 1
    entry = compared({"s": signal}, error=few)["s"]
    reason = "19 errors and 381 right answers to fit on: at least 20 of each are needed"
    assert entry["given_confidence"] == Estimate(absent=reason)
    assert "finds_errors" in entry
    few = np.where(fit, error, 0.0)
    few[np.flatnonzero(~fit)[:38:2]] = 1
    entry = compared({"s": signal}, error=few, called=np.arange(N) % 2)["s"]
    answers = ("finds_errors", "over_margin", "adds_to_confidence")
    assert [entry[name] for name in answers] == ["cannot be tested"] * 3
    assert "errors and" in entry["adjusted_error_auroc"].absent
    assert not [key for key in entry if key.startswith(("pooled", "gain"))]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"error": np.full(N, 2.0)}, "error must hold 0 and 1 only"),
        ({"logit": np.full(N, np.inf)}, "logit must be finite"),
        ({"signal": np.full(N, np.nan)}, "signal must be finite"),
        ({"called": np.full(N, -1)}, "called must hold 0 and 1 only"),
        ({"signal": np.ones(N - 1)}, r"signal must hold one value a case \(1200\)"),
        ({"fit": np.ones(3, bool)}, r"fit must say of each case \(1200\)"),
        ({"error": np.zeros(N)}, "0 errors and 400 right answers to fit on: at least 20 of each"),
    ],
)
def test_bad_input_is_named(changed, message):
    error, logit, fit = world()
    arguments = {"error": error, "logit": logit, "signal": np.arange(N) / N, "called": logit > 0, "fit": fit}
    arguments |= changed
    with pytest.raises(ValueError, match=message):
        given_confidence(**arguments)


@pytest.mark.parametrize("name", ["fit", "test", "groups", "s"])
def test_arrays_that_do_not_fit_together_are_named(name):
    changed = {} if name == "s" else {name: np.ones(N - 1, bool)}
    with pytest.raises(ValueError, match=rf"{name} must hold one value per case \(1200\), found shape \(1199,\)"):
        compared({"s": np.ones(N - (name == "s"))}, **changed)

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score
from statsmodels.stats.multitest import multipletests

from tmv_lib.detection import given_confidence, judge

N = 1200


def world(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors as often as calibrated logits say, the logits, and a third of the cases to fit on."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 1.5, N)
    return (rng.random(N) < expit(-np.abs(logit))).astype(float), logit, np.arange(N) % 3 == 0


def judged(signals: dict, seed: int = 0, **changed) -> dict:
    error, logit, fit = world(seed)
    arguments = {"error": error, "logit": logit, "fit": fit, "test": ~fit, "groups": np.arange(N) // 2, **changed}
    return judge(**arguments, signals=signals, n_resamples=400, rng=np.random.default_rng(1))


def test_what_confidence_knows_already_finds_errors_and_adds_nothing():
    _, logit, _ = world()
    entry = judged({"doubt": -np.abs(logit)})["doubt"]
    assert entry["finds_errors"] == "supported"
    assert entry["adds_to_confidence"] == "not supported"
    assert entry["gain_over_margin"] == 0
    assert abs(entry["likelihood_gain_given_confidence"]) < 1e-3


def test_what_knows_nothing_finds_and_adds_nothing():
    entry = judged({"noise": np.random.default_rng(5).random(N), "constant": np.ones(N)})
    for name in entry:
        assert entry[name]["finds_errors"] == entry[name]["adds_to_confidence"] == "not supported"
    assert entry["constant"]["error_auroc"] == 0.5


def test_what_knows_the_errors_adds_whichever_way_it_points():
    error, _, _ = world()
    hint = error + np.random.default_rng(5).normal(0, 1, N)
    found = judged({"hint": hint, "against": -hint})
    assert found["hint"]["finds_errors"] == "supported"
    assert found["against"]["finds_errors"] == "the opposite"
    for entry, sign in ((found["hint"], 1), (found["against"], -1)):
        assert entry["adds_to_confidence"] == "supported"
        assert entry["slope_given_confidence"] * sign > 0.5
    shared = [key for key in found["hint"] if key.startswith(("auroc_gain", "likelihood_gain")) and key[-1] == "e"]
    for key in shared:
        assert found["hint"][key] == pytest.approx(found["against"][key])


def test_figures_are_scikit_learns_and_p_values_statsmodels():
    error, logit, fit = world()
    rng = np.random.default_rng(2)
    signals = {name: rng.normal(size=N) + strength * error for name, strength in (("a", 0), ("b", 0.2), ("c", 0.3))}
    found = judged(signals)
    for name, signal in signals.items():
        assert found[name]["error_auroc"] == pytest.approx(roc_auc_score(error[~fit], signal[~fit]), rel=1e-12)
        precision = average_precision_score(error[~fit], signal[~fit])
        assert found[name]["error_average_precision"] == pytest.approx(precision, rel=1e-12)
        gain = roc_auc_score(error[~fit], signal[~fit]) - roc_auc_score(error[~fit], -np.abs(logit[~fit]))
        assert found[name]["gain_over_margin"] == pytest.approx(gain, rel=1e-12)
    for key in ("error_auroc_p_value", "likelihood_gain_given_confidence_p_value"):
        expected = multipletests([entry[key] for entry in found.values()], method="holm")[1]
        np.testing.assert_allclose([entry[f"{key}_holm"] for entry in found.values()], expected)


def test_the_regressions_are_the_penalised_maximum_of_the_likelihood():
    error, logit, fit = world()
    signal = np.random.default_rng(5).random(N)
    answers = given_confidence(error, logit, signal, fit=fit)
    for columns, answer in (([np.abs(logit)], answers.confidence), ([np.abs(logit), signal], answers.both)):
        table = np.stack([(column - column[fit].mean()) / column[fit].std() for column in columns], axis=1)

        def loss(beta: np.ndarray, table: np.ndarray = table) -> float:
            z = beta[0] + table[fit] @ beta[1:]
            return np.logaddexp(0, (1 - 2 * error[fit]) * z).sum() + (beta[1:] ** 2).sum() / 2

        beta = minimize(loss, np.zeros(1 + len(columns)), tol=1e-10).x
        np.testing.assert_allclose(answer, beta[0] + table @ beta[1:], atol=2e-3)


def test_what_happens_on_test_teaches_nothing():
    error, logit, fit = world()
    signal = np.random.default_rng(5).random(N)
    one = given_confidence(error, logit, signal, fit=fit)
    other = given_confidence(np.where(fit, error, 1 - error), logit, signal, fit=fit)
    np.testing.assert_array_equal(one.both, other.both)


def test_separated_errors_have_a_finite_answer():
    error, logit, fit = world()
    assert np.isfinite(given_confidence(error, logit, error, fit=fit).both).all()


def test_a_signal_is_judged_where_there_is_one():
    error, _, fit = world()
    signal = np.where(np.arange(N) < 600, np.random.default_rng(5).random(N), np.nan)
    entry = judged({"half": signal})["half"]
    assert entry["n"] == (~fit[:600]).sum()
    assert entry["n_errors"] == error[:600][~fit[:600]].sum()
    nothing = judged({"none": np.full(N, np.nan)})["none"]
    assert nothing == {
        "n": 0,
        "n_errors": 0,
        "absent": "0 errors and 0 right answers to judge: at least 20 of each are needed",
    }


def test_too_few_errors_are_said():
    error, _, fit = world()
    signal = np.random.default_rng(5).random(N)
    few = np.where(fit, 0.0, error)
    few[np.flatnonzero(fit)[:19]] = 1
    entry = judged({"s": signal}, error=few)["s"]
    assert entry["given_confidence_absent"] == (
        "19 errors and 381 right answers to fit on: at least 20 of each are needed"
    )
    assert "finds_errors" in entry
    few = np.where(fit, error, 0.0)
    few[np.flatnonzero(~fit)[:19]] = 1
    entry = judged({"s": signal}, error=few)["s"]
    assert set(entry) == {"n", "n_errors", "absent"}
    assert entry["absent"].startswith("19 errors and 781 right answers to judge: at least 20")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"error": np.full(N, 2.0)}, "error must hold 0 and 1 only"),
        ({"logit": np.full(N, np.inf)}, "logit must be finite"),
        ({"signal": np.full(N, np.nan)}, "signal must be finite"),
        ({"signal": np.ones(N - 1)}, r"signal must hold one value a case \(1200\)"),
        ({"fit": np.ones(3, bool)}, r"fit must say of each case \(1200\)"),
        ({"error": np.zeros(N)}, "0 errors and 400 right answers to fit on: at least 20 of each"),
    ],
)
def test_bad_input_is_named(changed, message):
    error, logit, fit = world()
    arguments = {"error": error, "logit": logit, "signal": np.arange(N) / N, "fit": fit, **changed}
    with pytest.raises(ValueError, match=message):
        given_confidence(**arguments)


@pytest.mark.parametrize("name", ["fit", "test", "groups", "s"])
def test_arrays_that_do_not_fit_together_are_named(name):
    changed = {} if name == "s" else {name: np.ones(N - 1, bool)}
    with pytest.raises(ValueError, match=rf"{name} must hold one value a case \(1200\), found shape \(1199,\)"):
        judged({"s": np.ones(N - (name == "s"))}, **changed)

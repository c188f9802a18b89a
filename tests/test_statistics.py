import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit, ndtr
from scipy.stats import binom, norm
from scipy.stats import t as t_distribution
from sklearn.metrics import average_precision_score, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from tmv_lib.statistics.ranking import auroc, auroc_with_upper_bound, average_precision, rank_among
from tmv_lib.statistics.resampling import Bootstrap, bootstrap, clustered_standard_error, patient_folds
from tmv_lib.statistics.tests import delong_test, holm, mcnemar_exact, wilson_interval

RANKING = [auroc, average_precision]


def scored_cases(rng, n=300, *, levels=None):
    """Labels and a score that leans towards them; `levels` rounds the score so that it has many ties."""
    y = (rng.random(n) < 0.4).astype(int)
    score = rng.normal(size=n) + y
    return y, score if levels is None else np.round(score * levels)


@pytest.mark.parametrize("metric", RANKING)
@pytest.mark.parametrize("levels", [None, 2])
def test_weights_count_rows(metric, levels):
    rng = np.random.default_rng(0)
    y, score = scored_cases(rng, levels=levels)
    counts = rng.integers(0, 4, size=(5, y.size))
    figures = metric(y, score, weights=counts)
    assert figures.shape == (5,)
    for row, figure in zip(counts, figures, strict=True):
        assert figure == pytest.approx(metric(np.repeat(y, row), np.repeat(score, row)), abs=1e-12)
        assert figure == pytest.approx(metric(y, score, weights=row), abs=1e-15)
    assert metric(y, score, weights=np.ones(y.size)) == metric(y, score)


@pytest.mark.parametrize("metric", RANKING)
def test_only_the_ranking_counts(metric):
    rng = np.random.default_rng(1)
    y, score = scored_cases(rng, levels=3)
    shuffled = rng.permutation(y.size)
    assert metric(y[shuffled], score[shuffled]) == pytest.approx(metric(y, score), abs=1e-12)
    assert metric(y, np.exp(score / 10)) == metric(y, score)


def test_a_reversed_score_has_the_complementary_auroc():
    y, score = scored_cases(np.random.default_rng(2), levels=3)
    assert auroc(y, -score) == pytest.approx(1 - auroc(y, score), abs=1e-12)


def test_a_constant_score_ranks_by_chance():
    y = np.array([1, 0, 0, 1, 0])
    assert auroc(y, np.ones(5)) == 0.5
    assert average_precision(y, np.ones(5)) == pytest.approx(2 / 5)


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_ranking_metrics_agree_with_scikit_learn(levels, weighted):
    rng = np.random.default_rng(3)
    y, score = scored_cases(rng, levels=levels)
    weights = rng.exponential(size=y.size) if weighted else None
    assert auroc(y, score, weights=weights) == pytest.approx(roc_auc_score(y, score, sample_weight=weights), abs=1e-12)
    assert average_precision(y, score, weights=weights) == pytest.approx(
        average_precision_score(y, score, sample_weight=weights), abs=1e-12
    )


def test_bootstrap_draws_whole_patients_within_their_class():
    groups = np.array(["a", "a", "b", "c", "c", "d", "e", "e"])
    y = np.array([1, 1, 1, 0, 0, 0, 0, 1])  # a, b positive; c, d negative; e has both
    seen = []

    def record(labels, *, weights):
        seen.append(weights)
        return weights @ labels

    bootstrap(record, y, groups=groups, n_resamples=500, rng=np.random.default_rng(0), stratify=y)
    weights = np.concatenate(seen)
    assert (weights[:, [0, 3, 6]] == weights[:, [1, 4, 7]]).all()
    assert (weights[:, 0] + weights[:, 2] == 2).all()
    assert (weights[:, 3] + weights[:, 5] == 2).all()
    assert (weights[:, 6] == 1).all()
    assert set(weights[:, 0]) == {0, 1, 2}
    assert weights[:, 0].mean() == pytest.approx(1, abs=0.1)


def test_bootstrap_of_a_mean_has_its_known_standard_error():
    x = np.random.default_rng(1).normal(size=400)
    result = bootstrap(
        lambda values, *, weights: weights @ values / weights.sum(axis=-1),
        x,
        groups=np.arange(400),
        n_resamples=4000,
        rng=np.random.default_rng(2),
    )
    assert result.samples.std() == pytest.approx(x.std() / np.sqrt(400), rel=0.05)
    assert result.low == np.quantile(result.samples, 0.025)
    assert result.high == np.quantile(result.samples, 0.975)


def test_bootstrap_is_a_loop_over_repeated_rows():
    rng = np.random.default_rng(11)
    y, score = scored_cases(rng, n=200, levels=3)
    groups, draws = rng.integers(0, 70, size=y.size), []

    def recorded(labels, scores, *, weights):
        draws.extend(weights.astype(int))
        return auroc(labels, scores, weights=weights)

    result = bootstrap(recorded, y, score, groups=groups, n_resamples=250, rng=rng, stratify=y)
    assert len(draws) == 250  # in several batches
    naive = [roc_auc_score(np.repeat(y, counts), np.repeat(score, counts)) for counts in draws]
    np.testing.assert_allclose(result.samples, naive, atol=1e-12)


def test_p_value_counts_the_smaller_tail_twice():
    def p_value(samples, null=0.0):
        return Bootstrap(0, 0, np.asarray(samples, dtype=float)).p_value(null)

    assert p_value([1] * 99) == 2 / 100
    assert p_value([-1] * 4 + [1] * 95) == 2 * (1 + 4) / 100
    assert p_value([-1] * 4 + [0] * 2 + [1] * 93) == 2 * (1 + 6) / 100  # 0 lies on both sides
    assert p_value([-1] * 4 + [1e-16, -1e-16] + [1] * 93) == 2 * (1 + 6) / 100  # 0 but for the order of additions
    assert p_value([0] * 99) == 1
    assert p_value([5] * 99, null=5) == 1
    samples = np.random.default_rng(12).normal(0.7, size=999)
    assert p_value(samples) == p_value(-samples) == p_value(samples + 3, null=3)


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.1, 0.15, 0.3])
def test_the_p_value_is_the_percentile_interval_turned_round(shift):
    samples = 0.07 * np.random.default_rng(13).normal(size=2000) + shift
    low, high = np.quantile(samples, [0.025, 0.975])
    assert (Bootstrap(low, high, samples).p_value() < 0.05) == (low > 0 or high < 0)


def test_equal_models_are_told_apart_as_often_as_the_level_says():
    # two scores of one strength and correlated noise, two images a patient
    rng, repeats = np.random.default_rng(14), 400
    patient = np.repeat(np.arange(100), 2)
    y = patient % 2

    def difference(labels, a, b, *, weights):
        return auroc(labels, a, weights=weights) - auroc(labels, b, weights=weights)

    rejected = 0
    for _ in range(repeats):
        shared = y + rng.normal(size=100)[patient] + 0.5 * rng.normal(size=y.size)
        a, b = shared + rng.normal(size=y.size), shared + rng.normal(size=y.size)
        result = bootstrap(difference, y, a, b, groups=patient, n_resamples=200, rng=rng, stratify=y)
        rejected += result.p_value() < 0.05
    assert 0.02 <= rejected / repeats <= 0.08  # 0.05 give or take 2.7 standard errors


def test_bootstrap_does_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(4)
    y, score = scored_cases(rng)
    groups = np.array([f"patient {i}" for i in rng.integers(0, 90, size=y.size)])
    order = rng.permutation(y.size)
    first, second = (
        bootstrap(
            auroc,
            y[rows],
            score[rows],
            groups=groups[rows],
            n_resamples=50,
            rng=np.random.default_rng(5),
            stratify=y[rows],
        )
        for rows in (slice(None), order)
    )
    np.testing.assert_allclose(first.samples, second.samples, atol=1e-12)


def test_paired_difference_of_a_model_with_itself_is_zero():
    y, score = scored_cases(np.random.default_rng(6))

    def difference(labels, a, b, *, weights):
        return auroc(labels, a, weights=weights) - auroc(labels, b, weights=weights)

    result = bootstrap(
        difference,
        y,
        score,
        2 * score,
        groups=np.arange(y.size),
        n_resamples=20,
        rng=np.random.default_rng(0),
        stratify=y,
    )
    assert (result.low, result.high) == (0, 0)


def test_interval_covers_the_true_auroc_only_when_patients_are_resampled():
    # score = shift y + patient effect + noise, unit variance each: AUROC = Phi(shift / sqrt(2 * 2))
    patients, images, shift, repeats = 60, 4, 1.5, 400
    truth = ndtr(shift / 2)
    covered = {"patients": 0, "images": 0}
    rng = np.random.default_rng(7)
    for _ in range(repeats):
        patient = np.repeat(np.arange(patients), images)
        y = patient % 2
        score = shift * y + rng.normal(size=patients)[patient] + rng.normal(size=y.size)
        for unit, groups in (("patients", patient), ("images", np.arange(y.size))):
            low, high, _ = bootstrap(auroc, y, score, groups=groups, n_resamples=200, rng=rng, stratify=y)
            covered[unit] += low <= truth <= high
    assert covered["patients"] / repeats >= 0.9
    assert covered["images"] / repeats <= 0.85


def test_the_error_of_independent_cases_is_the_usual_one():
    values = np.random.default_rng(15).normal(size=50)
    found = clustered_standard_error(values, np.arange(50))
    assert found == pytest.approx(values.std(ddof=1) / np.sqrt(50), abs=1e-15)
    copies = np.repeat(np.arange(50), 3)
    assert clustered_standard_error(values[copies], copies) == pytest.approx(found, abs=1e-15)


def test_the_clustered_error_agrees_with_statsmodels():
    rng = np.random.default_rng(16)
    groups, names = rng.integers(0, 40, size=200), rng.permutation(40).astype(str)
    values = rng.normal(size=40)[groups] + rng.normal(size=200)
    options = {"groups": groups, "use_correction": False}
    peer = sm.OLS(values, np.ones(200)).fit(cov_type="cluster", cov_kwds=options).bse[0] * np.sqrt(40 / 39)
    assert clustered_standard_error(values, names[groups]) == pytest.approx(peer, rel=1e-9)
    assert clustered_standard_error(values[:3], [0, 0, 0]) == pytest.approx(0, abs=1e-12)


def test_folds_keep_patients_together_and_classes_even():
    rng = np.random.default_rng(8)
    groups = rng.integers(0, 100, size=400)
    y = groups % 4 == 0
    fold = patient_folds(y, groups, n_folds=5, rng=rng)
    assert all(np.unique(fold[groups == g]).size == 1 for g in groups)
    for label in (True, False):
        patients = [np.unique(groups[(fold == k) & (y == label)]).size for k in range(5)]
        assert max(patients) - min(patients) <= 1


def test_delong_of_scores_that_rank_alike():
    y, score = scored_cases(np.random.default_rng(9))
    assert delong_test(y, score, np.exp(score)) == (0, 0, 1, 0, 0)


def test_delong_agrees_with_its_definition_by_pairs():
    rng = np.random.default_rng(10)
    y, a = scored_cases(rng, n=120, levels=2)
    b = a + rng.normal(size=y.size)
    # psi(x, y) = 1, 1/2 or 0 for every pair; S10 and S01 from its row and column means (DeLong et al. 1988)
    pairs = [0.5 * (np.sign(s[y == 1][:, None] - s[y == 0]) + 1) for s in (a, b)]
    contrast = np.array([1, -1])
    rows, columns = (np.cov([p.mean(axis=axis) for p in pairs]) for axis in (1, 0))
    variance = contrast @ (rows / pairs[0].shape[0] + columns / pairs[0].shape[1]) @ contrast
    result = delong_test(y, a, b)
    assert result.difference == pytest.approx(pairs[0].mean() - pairs[1].mean(), abs=1e-12)
    assert result.difference == pytest.approx(auroc(y, a) - auroc(y, b), abs=1e-12)
    assert result.z == pytest.approx(result.difference / np.sqrt(variance), abs=1e-10)
    assert result.high - result.difference == pytest.approx(1.959963984540054 * np.sqrt(variance), abs=1e-12)
    swapped = delong_test(y, b, a)
    assert (swapped.difference, swapped.p_value) == pytest.approx((-result.difference, result.p_value))


def test_delong_says_when_no_statistic_exists():
    with pytest.raises(ValueError, match="variance is 0"):
        delong_test([0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, 1])


def calibrated_cases(rng, n):
    """Labels and the logits that they were drawn from."""
    logit = 2.5 * rng.normal(size=n) + 0.5
    return (rng.random(n) < expit(logit)).astype(int), logit


def test_the_upper_bound_of_an_auroc_is_delong_with_students_t():
    y, z = calibrated_cases(np.random.default_rng(40), 60)
    other = np.zeros(60)  # an AUROC of one half without variance: DeLong's difference is AUROC - 1/2
    found, peer = auroc_with_upper_bound(y, z, groups=np.arange(60)), delong_test(y, z, other)
    assert found.auroc == pytest.approx(auroc(y, z), abs=1e-12)
    error = (peer.high - peer.difference) / norm.ppf(0.975)
    quantile = t_distribution.ppf(0.975, min(y.sum(), (1 - y).sum()) - 1)
    assert found.high == pytest.approx(min(1, 0.5 + peer.difference + quantile * error), abs=1e-9)
    # copies of an image tell nothing
    repeated = np.repeat(np.arange(60), 3)
    again = auroc_with_upper_bound(y[repeated], z[repeated], groups=repeated)
    np.testing.assert_allclose(again, found, atol=1e-9)


@pytest.mark.parametrize("positives", [2, 3, 6, 20])
def test_scores_that_rank_nothing_are_seldom_called_reversed(positives):
    rng = np.random.default_rng(41)
    groups = np.repeat(np.arange(150), 2)
    y = (groups < positives).astype(int)
    draws = [np.repeat(rng.normal(size=150), 2) + 0.5 * rng.normal(size=300) for _ in range(600)]
    alarms = sum(auroc_with_upper_bound(y, z, groups=groups).high < 0.5 for z in draws)
    assert alarms <= binom.ppf(0.999, 600, 0.035)  # promised 0.025; 0.24 by a bootstrap over 2 positive patients


def test_a_reversed_score_is_known_and_one_patient_is_no_evidence():
    y, z = calibrated_cases(np.random.default_rng(42), 100)
    reversed_score, score = (auroc_with_upper_bound(y, sign * z, groups=np.arange(100)) for sign in (-1, 1))
    assert reversed_score.high < 0.5 < score.auroc
    assert auroc_with_upper_bound([0, 0, 0, 1, 1], [1, 2, 3, 0, 0], groups=[0, 1, 2, 3, 3]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("y", "z", "message"),
    [
        ([], [], "at least one case"),
        ([0, 1], [0.1], "one value a case"),
        ([0, 2], [0.1, 0.2], "0 and 1 only"),
        ([0, 1], [0.1, np.nan], "logit must be finite"),
        ([1, 1], [0.1, 0.2], "one class only"),
    ],
)
def test_the_upper_bound_refuses(y, z, message):
    with pytest.raises(ValueError, match=message):
        auroc_with_upper_bound(y, z, groups=np.arange(len(y)))
    with pytest.raises(ValueError, match=r"patient of every case \(2\), found 1"):
        auroc_with_upper_bound([0, 1], [0.1, 0.2], groups=["a", None])


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 9), (5, 5), (12, 3), (40, 71)])
def test_mcnemar_agrees_with_statsmodels(b, c):
    assert mcnemar_exact(b, c) == pytest.approx(mcnemar([[7, b], [c, 5]], exact=True).pvalue, abs=1e-12)


def test_holm_agrees_with_statsmodels():
    p = np.array([0.04, 0.01, 0.01, 0.5, 0.3, 1.0, 0.0])
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], atol=1e-15)


def test_wilson_agrees_with_statsmodels():
    k, n = np.array([0, 3, 10, 624]), np.array([10, 17, 10, 700])
    np.testing.assert_allclose(wilson_interval(k, n), proportion_confint(k, n, method="wilson"), atol=1e-12)


@pytest.mark.parametrize("metric", RANKING)
@pytest.mark.parametrize(
    ("y", "score", "weights", "message"),
    [
        ([], [], None, "at least one case"),
        ([[0, 1]], [[0, 1]], None, "one-dimensional"),
        ([0, 2], [0.1, 0.2], None, "0 and 1 only, found 2.0"),
        ([0, 1], [0.1], None, "one value a case"),
        ([0, 1], [0.1, np.nan], None, "finite, found nan"),
        ([1, 1], [0.1, 0.2], None, "one class only"),
        ([0, 1], [0.1, 0.2], [1, 0], "one class only"),
        ([0, 1], [0.1, 0.2], [[1, 1], [0, 2]], "one class only"),
        ([0, 1], [0.1, 0.2], [1, 1, 1], "weights must have shape"),
        ([0, 1], [0.1, 0.2], [1, -1], "at least 0"),
    ],
)
def test_ranking_metrics_refuse(metric, y, score, weights, message):
    with pytest.raises(ValueError, match=message):
        metric(y, score, weights=weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": [1, 1, 1, 1]}, "at least 2 patients, found 1"),
        ({"groups": [1, 2, 3]}, "one row a case"),
        ({"groups": ["a", "b", None, "c"]}, "missing name"),
        ({"n_resamples": 0}, "n_resamples"),
        ({"stratify": [0, 1]}, "one patient a case"),
    ],
)
def test_bootstrap_refuses(change, message):
    arguments = {"groups": [1, 2, 3, 4], "n_resamples": 5, "rng": np.random.default_rng(0)} | change
    with pytest.raises(ValueError, match=message):
        bootstrap(auroc, [0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], **arguments)


def test_bootstrap_refuses_a_metric_that_ignores_the_batch():
    with pytest.raises(ValueError, match="one figure a resample"):
        bootstrap(lambda *, weights: 1.0, groups=[1, 2], n_resamples=5, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("y", "a", "b", "message"),
    [
        ([1, 1, 1], [1, 2, 3], [3, 2, 1], "at least 2 cases of each class"),
        ([0, 0, 1, 1], [1, 2, 3], [4, 3, 2, 1], r"score_a must hold one value a case \(4\), found 3"),
        ([0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, np.nan], "score_b must be finite"),
        ([0, 0, 1, 2], [1, 2, 3, 4], [4, 3, 2, 1], "0 and 1 only"),
    ],
)
def test_delong_refuses(y, a, b, message):
    with pytest.raises(ValueError, match=message):
        delong_test(y, a, b)


def test_delong_of_constant_scores():
    assert delong_test([0, 0, 1, 1], [1, 1, 1, 1], [2, 2, 2, 2]) == (0, 0, 1, 0, 0)


def test_the_rest_refuses():
    with pytest.raises(ValueError, match="reference must hold at least one case"):
        rank_among([1.0], [])
    with pytest.raises(ValueError, match="values must be finite"):
        rank_among([np.nan], [1.0])
    with pytest.raises(ValueError, match="p_values must be finite"):
        holm([0.1, np.nan])
    with pytest.raises(ValueError, match="one patient a case"):
        patient_folds([0, 1], ["a", "b", "c"], n_folds=2, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="number of patients"):
        patient_folds([0, 1, 1], ["a", "b", "b"], n_folds=3, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="at least 2 cases of each class"):
        delong_test([0, 1, 1], [1, 2, 3], [3, 2, 1])
    with pytest.raises(ValueError, match="whole numbers"):
        mcnemar_exact(-1, 2)
    with pytest.raises(ValueError, match="p_values"):
        holm([0.1, 1.2])
    with pytest.raises(ValueError, match="k between 0 and n"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="at least 1"):
        wilson_interval(0, 0)


def test_wilson_holds_the_share_itself_at_both_ends():
    n = np.arange(1, 300)
    assert (wilson_interval(np.zeros(n.size), n).low == 0).all()
    assert (wilson_interval(n, n).high == 1).all()

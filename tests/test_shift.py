import re
import time

import numpy as np
import pytest
from scipy.stats import ks_2samp
from statsmodels.stats.multivariate import test_mvmean_2indep as hotelling

from tmv_lib.card.answers import LOOKS
from tmv_lib.site.shift import NAMES, domain_test, kolmogorov_smirnov, name_shift, share_distance
from tmv_lib.statistics.estimate import adjust
from tmv_lib.statistics.ranking import auroc


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def place(rng, n_patients, *, prevalence=0.4, moved=(0.0, 0.0), start=0, d=6):
    """Patients of one place with one to three images each; `moved` shifts the features of negatives and positives."""
    patient = np.repeat(np.arange(n_patients), rng.integers(1, 4, n_patients)) + start
    y = (rng.random(n_patients) < prevalence)[patient - start].astype(int)
    own = rng.normal(size=(n_patients, d))[patient - start]
    features = y[:, None] * 1.5 + own + 0.5 * rng.normal(size=(len(patient), d))
    return features + np.where(y == 1, moved[1], moved[0])[:, None] * (np.arange(d) < 2), y, patient


def named(rng, *, n=150, permutations=199, seed=None, **elsewhere):
    """The name that the stage would give, from one source and one site; `seed`, of the deals alone."""
    (x0, y0, p0), (x1, y1, p1) = place(rng, n), place(rng, n, start=n, **elsewhere)
    x, y, p = np.vstack([x0, x1]), np.r_[y0, y1], np.r_[p0, p1]
    site = np.r_[np.zeros(len(y0)), np.ones(len(y1))]
    dealing = rng if seed is None else np.random.default_rng(seed)
    options = {"n_permutations": permutations, "rng": dealing}

    def tests(there):
        of_features = domain_test(x[there], site[there], p[there], n_folds=5, n_foldings=1, **options)
        of_logits = kolmogorov_smirnov(x[there].sum(axis=1), site[there], p[there], **options)
        return {"features": of_features._asdict(), "logit": of_logits._asdict()}

    found = {"pooled": tests(y >= 0), "negative": tests(y == 0), "positive": tests(y == 1)}
    found["prevalence"] = share_distance(y, site, p, **options)._asdict()
    adjust(found)
    parts = ("pooled", "negative", "positive")
    p_values = {part: [test["p_value_holm"] for test in found[part].values()] for part in parts}
    return name_shift(**p_values, prevalence=found["prevalence"]["p_value_holm"])


def test_identical_places_stay_quiet():
    alarms = sum(named(np.random.default_rng(seed), n=60) != "none" for seed in range(100))
    assert alarms <= 10


@pytest.mark.parametrize(
    ("expected", "elsewhere"),
    [
        ("none", {}),
        ("prevalence", {"prevalence": 0.75}),
        ("both_classes", {"moved": (1.2, 1.2)}),
        ("negative_class", {"moved": (1.2, 0.0)}),
        ("positive_class", {"moved": (0.0, 1.2)}),
    ],
)
def test_each_shift_is_named_in_seventeen_of_twenty_seeds(expected, elsewhere):
    right = sum(named(np.random.default_rng(seed), **elsewhere) == expected for seed in range(20))
    assert right >= 17


def test_the_effect_is_the_auroc_within_folds_and_blind_to_what_says_nothing(rng):
    (x0, _, p0), (x1, _, p1) = place(rng, 60), place(rng, 60, start=60, moved=(5.0, 5.0))
    site = np.r_[np.zeros(len(x0)), np.ones(len(x1))]
    options = {"n_folds": 5, "n_foldings": 1, "n_permutations": 99}
    seen = domain_test(np.vstack([x0, x1]), site, np.r_[p0, p1], rng=np.random.default_rng(0), **options)
    assert seen.observed > 0.99
    assert seen.p_value == pytest.approx(0.01)
    nothing = domain_test(np.zeros((len(site), 3)), site, np.r_[p0, p1], rng=np.random.default_rng(0), **options)
    assert nothing.observed == 0.5
    assert nothing.p_value == 1


def test_order_of_rows_does_not_matter_to_the_distances(rng):
    v, site, p = rng.normal(size=80), np.repeat([0, 1], 40), np.arange(80)
    shuffled = rng.permutation(80)
    first = kolmogorov_smirnov(v, site, p, n_permutations=99, rng=np.random.default_rng(1))
    second = kolmogorov_smirnov(
        v[shuffled], site[shuffled], p[shuffled], n_permutations=99, rng=np.random.default_rng(1)
    )
    assert first.observed == pytest.approx(second.observed)


def test_kolmogorov_smirnov_is_scipys(rng):
    v = np.round(rng.normal(size=90), 1)  # with ties
    site = np.repeat([0, 1], [40, 50])
    found = kolmogorov_smirnov(v, site, np.arange(90), n_permutations=999, rng=rng)
    theirs = ks_2samp(v[site == 0], v[site == 1], method="exact")
    assert found.observed == pytest.approx(theirs.statistic)
    assert found.p_value == pytest.approx(theirs.pvalue, abs=0.06)


def test_shares_of_words_differ_by_what_would_have_to_change(rng):
    site = np.repeat([0, 1], [40, 60])
    words = np.r_[["a"] * 20, ["b"] * 20, ["a"] * 15, ["b"] * 15, ["c"] * 30]
    found = share_distance(words, site, np.arange(100), n_permutations=999, rng=rng)
    assert found.observed == pytest.approx(0.5)
    assert found.p_value == pytest.approx(0.001)
    of_two = share_distance(np.where(words == "c", "c", "d"), site, np.arange(100), n_permutations=99, rng=rng)
    assert of_two.observed == pytest.approx(0.5)  # of two words it is the difference of shares
    same = share_distance(np.tile(["a", "b"], 50), site, np.arange(100), n_permutations=99, rng=rng)
    assert same.observed == 0
    assert same.p_value == 1
    with pytest.raises(ValueError, match=r"values must be as many as the cases \(100\), found 2"):
        share_distance(["a", "b"], site, np.arange(100), n_permutations=99, rng=rng)


def test_a_word_that_goes_by_patient_is_no_evidence_of_its_images():
    alarms = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        patient = np.repeat(np.arange(40), 10)
        device = rng.choice(["x", "y"], 40)[patient]
        alarms += share_distance(device, patient >= 20, patient, n_permutations=199, rng=rng).p_value < 0.05
    assert alarms <= 10


def test_images_of_one_patient_are_no_evidence():
    """Twenty images each of ten patients differ a lot between places, as any two groups of ten patients do."""
    alarms = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        level, patient = rng.normal(size=20), np.repeat(np.arange(20), 20)
        v = level[patient] + 0.1 * rng.normal(size=400)
        alarms += kolmogorov_smirnov(v, patient >= 10, patient, n_permutations=199, rng=rng).p_value < 0.05
    assert alarms <= 6


def test_bad_input_is_named(rng):
    x, _, p = place(rng, 12)
    options = {"n_folds": 5, "n_foldings": 1, "n_permutations": 99, "rng": rng}
    with pytest.raises(ValueError, match="patient 0 belongs to the site and to the source"):
        domain_test(np.zeros((4, 2)), [0, 1, 0, 1], [0, 0, 1, 2], **options)
    with pytest.raises(ValueError, match="needs 5 patients of each place, one a fold, found 3"):
        domain_test(x, p >= 9, p, **options)
    with pytest.raises(ValueError, match="found those of one alone"):
        domain_test(x, np.ones(len(p)), p, **options)
    with pytest.raises(ValueError, match="features must be finite"):
        domain_test(np.full((len(p), 2), np.nan), p >= 6, p, **options)


def test_9999_permutations_of_1300_cases_take_less_than_five_seconds(rng):
    x, site, p = rng.normal(size=(1300, 32)), np.repeat([0, 1], [870, 430]), np.arange(1300)
    start = time.process_time()  # of this process: others may share the core
    domain_test(x, site, p, n_folds=5, n_foldings=5, n_permutations=9999, rng=rng)
    kolmogorov_smirnov(x[:, 0], site, p, n_permutations=9999, rng=rng)
    assert time.process_time() - start < 5


def test_without_a_ridge_the_p_value_is_hotellings(rng):
    """Many patients: the ridge is nothing, the permutation distribution that of Hotelling's T^2."""
    x, site, p = rng.normal(size=(600, 3)), np.repeat([0, 1], [350, 250]), np.arange(600)
    x[site == 1, 0] += 0.1
    found = domain_test(x, site, p, n_folds=5, n_foldings=1, n_permutations=9999, rng=rng)
    theirs = hotelling(x[site == 0], x[site == 1])
    assert 0.001 < theirs.pvalue < 0.2
    assert found.p_value == pytest.approx(theirs.pvalue, abs=0.01)


def test_the_p_value_does_not_know_the_folds_and_hardly_the_seed(rng):
    x, site, p = rng.normal(size=(200, 8)), np.repeat([0, 1], [120, 80]), np.arange(200)
    x[site == 1, 0] += 0.35
    options = {"n_folds": 5, "n_foldings": 2, "n_permutations": 9999}
    found = [domain_test(x, site, p, rng=np.random.default_rng(seed), **options).p_value for seed in range(20)]
    assert np.ptp(found) < 6 * 2 * np.sqrt(np.mean(found) / 9999)


def test_over_twenty_seeds_the_verdict_on_one_data_set_is_the_same():
    """Faint shifts and none: the name hangs on the data and not on the deals."""
    for world, elsewhere in enumerate(({}, {"moved": (0.6, 0.0)})):
        names = [named(np.random.default_rng(world), n=60, permutations=9999, seed=s, **elsewhere) for s in range(20)]
        assert max(names.count(name) for name in names) >= 19


def test_a_p_value_at_the_level_does_not_reject():
    quiet = {"negative": [0.05], "positive": [0.05], "prevalence": 0.05, "pooled": [0.05]}
    assert name_shift(**quiet) == "none"
    assert name_shift(**quiet | {"positive": [np.nextafter(0.05, 0)]}) == "positive_class"


def test_no_sentence_claims_harm_or_likeness():
    assert tuple(LOOKS) == NAMES
    for name, words in LOOKS.items():
        assert name == "none" or "harm unknown" in words
        assert not re.search(r"lapse|mend|false|does not look|do not look|looks like|same", words)


def test_auroc_of_one_fold_each_is_the_mean_over_pairs(rng):
    """With scores that do not depend on the fold the statistic lies close to the plain AUROC."""
    x, site, p = rng.normal(size=(400, 1)), np.repeat([0, 1], 200), np.arange(400)
    x[site == 1] += 1
    found = domain_test(x, site, p, n_folds=5, n_foldings=1, n_permutations=1, rng=rng)
    assert found.observed == pytest.approx(auroc(site, x[:, 0]), abs=0.01)


def test_the_effect_of_several_foldings_hangs_less_on_the_folds():
    rng = np.random.default_rng(0)
    x, site, groups = rng.normal(size=(60, 5)), np.repeat([0, 1], 30), np.arange(60)

    def observed(n_foldings: int) -> list[float]:
        options = {"n_folds": 5, "n_permutations": 1, "n_foldings": n_foldings}
        return [domain_test(x, site, groups, rng=np.random.default_rng(s), **options).observed for s in range(12)]

    assert np.std(observed(8)) < np.std(observed(1)) / 2  # 1 / sqrt(8)
    assert np.mean(observed(8)) == pytest.approx(np.mean(observed(1)), abs=0.03)

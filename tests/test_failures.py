import numpy as np
import pandas as pd
import pytest

from tmv_lib import failures

RULES = failures.Rules(against=0.2, doubt=0.25, neighbours=0.3, unusual=0.95)

# A false negative that every model makes with confidence on a typical image with a label that others support.
PLAIN = {
    "y_true": 1,
    "y_prob": 0.05,
    "ensemble_prob": 0.05,
    "members_disagree": False,
    "border_mends": False,
    "out_of_fold_prob": 0.6,
    "neighbour_agreement": 0.6,
    "distance_rank": 0.5,
    "oddity_rank": 0.5,
}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, "undetermined"),
        ({"border_mends": True}, "spurious feature"),
        ({"ensemble_prob": 0.4}, "clinical ambiguity"),
        ({"members_disagree": True}, "clinical ambiguity"),
        ({"oddity_rank": 0.99}, "model blindness"),
        ({"distance_rank": 0.99}, "model blindness"),
        ({"out_of_fold_prob": 0.05, "neighbour_agreement": 0.1}, "annotation noise"),
        ({"out_of_fold_prob": 0.05}, "undetermined"),
        ({"border_mends": True, "members_disagree": True, "oddity_rank": 0.99}, "spurious feature"),
    ],
)
def test_the_first_rule_whose_evidence_is_there_names_the_kind(change, kind):
    sorted_ = failures.sort_errors(pd.DataFrame([PLAIN | change]), rules=RULES)
    assert sorted_["kind"].tolist() == [kind]
    assert kind in failures.NEEDS


def test_a_false_positive_is_read_from_the_other_side():
    mirrored = PLAIN | {"y_true": 0, "y_prob": 0.95, "ensemble_prob": 0.95, "out_of_fold_prob": 0.95}
    found = failures.sort_errors(pd.DataFrame([mirrored | {"neighbour_agreement": 0.1}]), rules=RULES)
    assert found["kind"].tolist() == ["annotation noise"]
    assert "5%" in found["reason"][0]


def test_missing_evidence_is_named():
    with pytest.raises(ValueError, match="evidence column oddity_rank is missing"):
        failures.sort_errors(pd.DataFrame([PLAIN]).drop(columns="oddity_rank"), rules=RULES)


def two_clouds(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y_true = np.arange(n) % 2
    return rng.normal(size=(n, 20)) + 3 * (2 * y_true[:, None] - 1) * (np.arange(20) < 3), y_true


def test_out_of_fold_heads_contradict_a_wrong_label():
    features, y_true = two_clouds()
    given = y_true.copy()
    given[:5] = 1 - given[:5]
    probs = failures.out_of_fold_probs(features, given, groups=np.arange(200), n_folds=5, rng=np.random.default_rng(0))
    supported = np.where(given == 1, probs, 1 - probs)
    assert supported[:5].max() < 0.5 < np.quantile(supported[5:], 0.05)


def test_neighbours_contradict_a_wrong_label():
    features, y_true = two_clouds()
    given = y_true[:10].copy()
    given[0] = 1 - given[0]
    found = failures.neighbour_agreement(features[:10] + 1e-9, given, features[10:], y_true[10:], k=10)
    assert found[0] < 0.3
    assert found[1:].min() > 0.7


def test_a_spot_that_no_normal_has_is_odd():
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:56, :56] / 56

    def normals(n: int) -> np.ndarray:
        waves = 128 + 40 * np.sin(5 * rows) * rng.normal(1, 0.2, (n, 1, 1)) + 30 * np.cos(4 * columns)
        return (waves + rng.normal(0, 3, (n, 56, 56))).clip(0, 255).astype(np.uint8)

    images = normals(20)
    images[0, 30:36, 20:26] += 30
    odd = failures.local_oddity(images, normals(100), components=10, side=56, seed=0)
    assert odd.argmax() == 0
    assert odd[0] > 3 * odd[1:].max()

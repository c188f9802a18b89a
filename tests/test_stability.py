import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import center_of_mass
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity as skimage_ssim
from skimage.transform import resize, rotate
from torch.nn import functional

from tmv_lib.calibration.calibrators import Calibrator
from tmv_lib.explanations.attribution import Explained
from tmv_lib.stability import perturbations
from tmv_lib.stability import similarity as stability
from tmv_lib.stability.answer import (
    KEPT,
    Answer,
    StabilityParams,
    by_change,
    compare,
    find_errors,
    flipped_and_moved,
    instability,
)
from tmv_lib.stability.gallery import gallery, most_and_least_stable
from tmv_lib.stability.similarity import MEASURES, centre_shift, structural_similarity, top_overlap
from tmv_lib.statistics.ranking import rank_correlation
from tmv_lib.uncertainty import detection


def random_maps(n: int = 5, side: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, side, side))


def smooth_images(n: int = 3, side: int = 64) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side] / side
    waves = [np.sin(6 * rows * (k + 1)) + np.cos(5 * columns + k) for k in range(n)]
    return ((np.stack(waves) + 2) * 60).astype(np.uint8)


PERTURBATIONS = {
    "rotation": perturbations.rotation(5),
    "translation": perturbations.translation(0.05),
    "brightness": perturbations.brightness(0.1),
    "contrast": perturbations.contrast(1.2),
    "noise": perturbations.noise(0.03, seed=0),
    "blur": perturbations.blur(1.0),
}


def test_rank_correlation_is_spearmans_with_average_ties():
    a, b = random_maps().round().reshape(5, -1), random_maps(seed=1).round().reshape(5, -1)
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(rank_correlation(a, b), expected, atol=1e-12)


def test_a_constant_map_is_like_nothing():
    a, b = random_maps(2), np.ones((2, 8, 8))
    for pair in ((a, b), (b, a), (b, b)):
        flat = [maps.reshape(2, -1) for maps in pair]
        for similarity in (rank_correlation(*flat), top_overlap(*flat), structural_similarity(*pair)):
            assert np.isnan(similarity).all()


def test_structural_similarity_is_scikit_images():
    a, b = random_maps(side=7), random_maps(side=7, seed=1)

    def prepared(values: np.ndarray) -> np.ndarray:
        unit = (values - values.min()) / (values.max() - values.min())
        return resize(unit, (28, 28), order=1, mode="edge", anti_aliasing=False)

    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    expected = [skimage_ssim(prepared(x), prepared(y), **options) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(structural_similarity(a, b), expected, atol=1e-6)


def test_every_map_is_like_itself_whatever_its_scale():
    maps = random_maps()
    flat = maps.reshape(5, -1)
    np.testing.assert_allclose(rank_correlation(flat, 3 * flat + 1), 1)
    np.testing.assert_allclose(structural_similarity(maps, 3 * maps + 1), 1)
    np.testing.assert_allclose(top_overlap(flat, 3 * flat + 1), 1)
    np.testing.assert_allclose(centre_shift(maps, 3 * maps), 0, atol=1e-12)


def test_top_overlap_by_hand():
    a, b = np.zeros((1, 40)), np.zeros((1, 40))
    a[0, :4], b[0, 2:6] = 1, 1
    assert top_overlap(a, b)[0] == pytest.approx(2 / 6)
    b[0, 6] = 1  # ties with the last of the top four
    assert top_overlap(a, b)[0] == pytest.approx(2 / 7)


def test_the_order_of_cells_means_nothing():
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 5, (2, 20, 49)).astype(float)
    order = rng.permutation(49)
    for measure in (top_overlap, rank_correlation):
        np.testing.assert_allclose(measure(a, b), measure(a[:, order], b[:, order]))


def test_centre_shift_is_the_distance_of_scipys_centres_of_mass():
    a, b = random_maps(), random_maps(seed=1)
    centres = [[center_of_mass(np.maximum(one, 0)) for one in maps] for maps in (a, b)]
    np.testing.assert_allclose(centre_shift(a, b), np.linalg.norm(np.subtract(*centres), axis=1), rtol=1e-12)


def test_centre_shift_by_hand():
    a, b = np.zeros((1, 10, 10)), np.zeros((1, 10, 10))
    a[0, 2, 2], b[0, 5, 6] = 1, 1
    assert centre_shift(a, b)[0] == pytest.approx(5)
    assert np.isnan(centre_shift(a, -b)[0])


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_perturbed_levels_stay_levels(name):
    levels = smooth_images().astype(np.float32) / 255
    changed = PERTURBATIONS[name].apply(levels)
    assert changed.shape == levels.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not np.array_equal(changed, levels)


@pytest.mark.parametrize("name", ["rotation", "translation"])
def test_a_geometric_change_is_undone(name):
    levels = smooth_images().astype(np.float32) / 255
    matrix = PERTURBATIONS[name].matrix
    back = perturbations.warp(PERTURBATIONS[name].apply(levels), perturbations.inverse(matrix))
    inside = perturbations.valid_cells((64, 64), matrix)
    assert 0.7 < inside.mean() < 1
    assert np.abs(back - levels)[:, inside].max() < 0.05


def test_translation_moves_right_and_down():
    levels = np.zeros((1, 20, 20), np.float32)
    levels[0, 5, 5] = 1
    moved = perturbations.translation(0.1).apply(levels)
    assert np.unravel_index(moved[0].argmax(), (20, 20)) == (7, 7)


def test_a_rotation_is_scikit_images():
    levels = smooth_images().astype(np.float32) / 255
    expected = [rotate(image, 5, order=1, mode="edge") for image in levels]
    np.testing.assert_allclose(perturbations.rotation(5).apply(levels), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 9), (12, 7)])
def test_a_warp_is_torchs(shape):
    levels = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    matrix = perturbations.rotation(30).matrix + np.array([[0, 0, 0.2], [0, 0, -0.1]])
    theta = torch.tensor(matrix, dtype=torch.float32).expand(3, 2, 3)
    grid = functional.affine_grid(theta, [3, 1, *shape], align_corners=False)
    expected = functional.grid_sample(torch.tensor(levels)[:, None], grid, padding_mode="border", align_corners=False)
    np.testing.assert_allclose(perturbations.warp(levels, matrix), expected[:, 0], atol=1e-5)


def test_mild_changes_turn_both_ways_and_go_lighter_and_darker():
    sizes = PARAMS.model_dump()
    changes = perturbations.mild(sizes, seed=0)
    levels = np.full((1, 8, 8), 0.5, np.float32)
    assert changes["brighter"].apply(levels).mean() == pytest.approx(0.6)
    assert changes["darker"].apply(levels).mean() == pytest.approx(0.4)
    turned = [changes[f"rotation {sign}5°"].matrix for sign in "+-"]
    np.testing.assert_allclose(turned[0], perturbations.inverse(turned[1]), atol=1e-12)


def test_cells_are_valid_where_they_stay_in_the_image():
    valid = perturbations.valid_cells((8, 8), perturbations.translation(0.25).matrix)
    np.testing.assert_array_equal(valid, np.add.outer(np.arange(8) >= 6, np.arange(8) >= 6) == 0)
    turned = perturbations.valid_cells((7, 7), perturbations.rotation(45).matrix)
    np.testing.assert_array_equal(~turned, np.isin(np.add.outer(*2 * [np.abs(np.arange(7) - 3)]), (5, 6)))


def image_as_map(levels: np.ndarray) -> Explained:
    """A perfectly equivariant explainer of images as fine as their maps."""
    return Explained(levels.mean((1, 2)) - 0.5, levels)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "change", [perturbations.rotation(5), perturbations.rotation(-17), perturbations.translation(0.04)]
)
def test_an_equivariant_explainer_loses_what_interpolation_costs_and_no_more(change, sign):
    images = np.random.default_rng(0).integers(0, 256, (6, 9, 9), dtype=np.uint8)
    found = stability.stability(image_as_map, images, {"change": change}, target=np.full(6, sign), batch_size=4)
    for measure in MEASURES:
        np.testing.assert_allclose(found[measure], found[f"{measure}_floor"], atol=1e-5)
    assert (found["rank_correlation"] < 1).all()


def test_a_shift_by_whole_cells_is_undone_without_loss():
    images = np.random.default_rng(0).integers(1, 256, (4, 8, 8), dtype=np.uint8)
    found = stability.stability(image_as_map, images, {"s": perturbations.translation(0.25)}, target=np.ones(4, int))
    for measure, perfect in zip(MEASURES, (1, 1, 1, 0), strict=True):
        np.testing.assert_allclose(found[measure], perfect, atol=1e-5)
        np.testing.assert_allclose(found[f"{measure}_floor"], perfect, atol=1e-5)


def test_a_map_that_stays_where_it_was_has_shifted_against_the_image():
    maps = np.zeros((2, 8, 8), np.float32)
    maps[:, 3:5, 3:5] = [[1, 2], [3, 4]]
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8)
    found = stability.stability(
        lambda levels: Explained(np.ones(2), maps),
        images,
        {"s": perturbations.translation(0.125)},
        target=np.ones(2, int),
    )
    # one cell right and down is undone on a map that never moved: one cell left and up, 4 pixels each
    np.testing.assert_allclose(found["centre_shift"], 4 * np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(found["centre_shift_floor"], 0, atol=1e-6)
    assert (found["rank_correlation"] < found["rank_correlation_floor"]).all()


def test_interpolation_costs_nothing_where_nothing_moves():
    found = stability.stability(brightness_as_map, smooth_images(), PERTURBATIONS, target=np.ones(3, int))
    moving = found["perturbation"].isin(["rotation", "translation"])
    for measure in MEASURES:
        np.testing.assert_array_equal(found[f"{measure}_floor"].notna(), moving)


def brightness_as_map(levels: np.ndarray) -> Explained:
    """A perfectly equivariant explainer: the map is the image on an 8 x 8 grid."""
    n, side = levels.shape[:2]
    maps = levels.reshape(n, 8, side // 8, 8, side // 8).mean((2, 4))
    return Explained(levels.mean((1, 2)) - 0.5, maps)


def test_an_explainer_that_ignores_the_image_is_perfectly_stable_where_nothing_moves():
    maps = random_maps(3)
    found = stability.stability(
        lambda levels: Explained(np.ones(len(levels)), maps[: len(levels)]),
        smooth_images(),
        {"noise": PERTURBATIONS["noise"]},
        target=np.ones(3, int),
    )
    np.testing.assert_allclose(found["rank_correlation"], 1)
    assert not found["flipped"].any()


def test_a_decision_that_crosses_the_threshold_has_flipped():
    images = np.full((2, 64, 64), 120, np.uint8)
    images[1] = 200
    found = stability.stability(brightness_as_map, images, {"b": PERTURBATIONS["brightness"]}, target=np.ones(2, int))
    assert found["flipped"].tolist() == [True, False]
    np.testing.assert_allclose(found["logit"], images[:, 0, 0] / 255 + 0.1 - 0.5, rtol=1e-5)
    assert found["rank_correlation"].isna().all()


def test_knowing_the_original_changes_nothing():
    images = smooth_images()
    known = brightness_as_map(images.astype(np.float32) / 255)
    options = {"target": np.array([1, -1, 1])}
    one = stability.stability(brightness_as_map, images, PERTURBATIONS, **options)
    other = stability.stability(brightness_as_map, images, PERTURBATIONS, original=known, **options)
    assert one.equals(other)


def test_one_case_is_enough_and_batches_change_nothing():
    options = {"perturbations": PERTURBATIONS, "target": np.array([1, -1, 1])}
    together = stability.stability(brightness_as_map, smooth_images(), **options)
    options["target"] = options["target"][:1]
    alone = stability.stability(brightness_as_map, smooth_images()[:1], **options)
    pd.testing.assert_frame_equal(alone, together[together["case"] == 0].reset_index(drop=True), rtol=1e-5)


def test_what_is_empty_has_no_centre_and_what_is_constant_no_likeness():
    maps = -random_maps(3).__abs__()
    maps[1] = 2
    found = stability.stability(
        lambda levels: Explained(np.ones(3), maps),
        smooth_images(),
        {"b": perturbations.blur(1)},
        target=np.ones(3, int),
    )
    assert found["centre_shift"].isna().tolist() == [True, False, True]
    for measure in stability.SIMILARITIES:
        assert found[measure].isna().tolist() == [False, True, False]


def test_per_case_takes_means_of_what_is_defined():
    table = {measure: [1.0, 0.0, np.nan, np.nan, 0.5, np.nan] for measure in MEASURES}
    compared = pd.DataFrame({"case": [0, 0, 1, 1, 2, 2], **table, "flipped": [False, True] + 4 * [False]})
    found = stability.per_case(compared)
    np.testing.assert_array_equal(found["top_overlap"], [0.5, np.nan, 0.5])
    assert found["n_undefined"].tolist() == [0, 2, 1]
    assert found["flipped"].tolist() == [True, False, False]


GOOD = {"images": smooth_images(), "perturbations": {"blur": perturbations.blur(1)}, "target": np.ones(3, int)}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"images": smooth_images().astype(float)}, r"images must be uint8 .* found float64 \(3, 64, 64\)"),
        ({"images": smooth_images()[:, :, :32]}, r"images must be .* found uint8 \(3, 64, 32\)"),
        ({"images": smooth_images()[:0], "target": np.ones(0, int)}, "at least one"),
        ({"target": np.ones(2, int)}, r"target must be \+1 or -1 for each of 3 images"),
        ({"target": np.zeros(3, int)}, r"target must be \+1 or -1"),
        ({"perturbations": {}}, "at least one change"),
        ({"explain": lambda levels: Explained(np.ones(2), np.ones((3, 8, 8)))}, r"found \(2,\) and \(3, 8, 8\)"),
        ({"explain": lambda levels: Explained(np.ones(3), np.ones((3, 8, 9)))}, r"maps \(3, h, h\)"),
        ({"explain": lambda levels: Explained(np.ones(3), np.ones((3, 4, 4)))}, r"at least 7 x 7 .* found \(4, 4\)"),
        ({"explain": lambda levels: Explained(np.ones(3), np.full((3, 8, 8), np.nan))}, "finite"),
        ({"original": Explained(np.ones(3), random_maps(3, 9))}, r"found \(3,\) and \(3, 8, 8\)"),
        ({"original": Explained(np.ones(2), random_maps(2))}, r"found \(2,\) and \(2, 8, 8\)"),
    ],
)
def test_bad_input_is_named(bad, message):
    arguments = {"explain": brightness_as_map, **GOOD, **bad}
    with pytest.raises(ValueError, match=message):
        stability.stability(**arguments)


def test_a_change_that_leaves_too_little_to_compare_is_named():
    far = perturbations.Perturbation(lambda levels: levels, np.array([[1.0, 0, -0.8], [0, 1.0, -0.8]]))
    with pytest.raises(ValueError, match=r"perturbation 'far': too large a change, \d+ of 64 cells"):
        stability.stability(brightness_as_map, smooth_images(), {"far": far}, target=np.ones(3, int))


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (perturbations.rotation, 46),
        (perturbations.translation, -0.3),
        (perturbations.brightness, 0.6),
        (perturbations.contrast, 0),
        (lambda sigma: perturbations.noise(sigma, seed=0), -0.1),
        (perturbations.blur, float("nan")),
    ],
)
def test_a_perturbation_out_of_range_is_an_error(make, value):
    with pytest.raises(ValueError, match=f"must lie in .*, found {value:g}"):
        make(value)


PARAMS = StabilityParams(
    rotation=5.0,
    translation=0.03,
    brightness=0.1,
    contrast=1.2,
    noise=0.03,
    blur=0.7,
    moved_quantile=0.9,
    batch_size=4,
    resamples=200,
    seed=0,
)


def made_cases(n: int = 120, seed: int = 0) -> pd.DataFrame:
    """Two images a patient, the first half validation, a fifth of the answers wrong."""
    rng = np.random.default_rng(seed)
    y_true, wrong = rng.integers(0, 2, n), np.arange(n) % 5 == 0
    logit = rng.uniform(0.1, 3, n) * np.where(wrong == (y_true == 1), -1, 1)
    table = {measure: rng.random(n) for measure in MEASURES} | {"flipped": rng.random(n) < 0.3}
    ids = {"image_id": [f"i{k}" for k in range(n)], "patient_id": [f"p{k // 2}" for k in range(n)]}
    cases = pd.DataFrame(
        {**ids, "split": np.repeat(["val", "test"], n // 2), "y_true": y_true, **table, "logit": logit}
    )
    cases["y_prob"] = 1 / (1 + np.exp(-logit))
    cases["cross_fitted_logit"] = logit
    return cases.assign(error=wrong.astype(int), target=np.sign(logit).astype(int), instability=1 - table[MEASURES[0]])


def test_flipped_and_moved_by_hand():
    cases = made_cases()
    cases["instability"] = np.r_[np.linspace(0, 1, 60), np.tile([0.2, 0.95, 0.2, 0.95], 15)]
    cases["flipped"] = np.r_[np.zeros(60, bool), np.tile([False, False, True, True], 15)]
    found, rows = flipped_and_moved(cases, PARAMS)
    assert found["moved_above"] == pytest.approx(0.9)
    cells = [
        found[f"answer_{answer}_reason_{reason}"] for answer in ("kept", "flipped") for reason in ("kept", "moved")
    ]
    assert [cell["n"] for cell in cells] == [15, 15, 15, 15]
    assert [cell["share"].value for cell in cells] == [0.25] * 4
    assert [cell["error_rate"].value for cell in cells] == [0.2] * 4
    assert found["moved_rate_flipped_minus_kept"].value == 0
    assert len(rows) == 4


def test_every_cell_counts_once_and_the_difference_is_that_of_the_rates():
    found, _ = flipped_and_moved(made_cases(), PARAMS)
    cells = [
        found[f"answer_{answer}_reason_{reason}"] for answer in ("kept", "flipped") for reason in ("kept", "moved")
    ]
    assert sum(cell["n"] for cell in cells) == found["n"] == 60
    assert sum(cell["share"].value for cell in cells) == pytest.approx(1)
    flipped, kept = (found[f"moved_rate_where_answer_{answer}"].value for answer in ("flipped", "kept"))
    assert found["moved_rate_flipped_minus_kept"].value == pytest.approx(flipped - kept)


@pytest.mark.parametrize("split", ["val", "test"])
def test_constant_maps_alone_move_nowhere(split):
    cases = made_cases()
    cases.loc[cases["split"] == split, "instability"] = np.nan
    found, rows = flipped_and_moved(cases, PARAMS)
    assert found["moved_above"].absent == "validation or test holds no map that is not constant"
    assert found["constant_maps"] == (60 if split == "test" else 0)
    assert rows == []


def test_the_claim_is_tested():
    cases = made_cases(400)
    for measure in stability.SIMILARITIES:
        cases[measure] = np.where(cases["error"] == 1, 0.2, 0.8) + 0.05 * np.random.default_rng(1).normal(size=400)
    found, rows = find_errors(cases, PARAMS)
    claim = found["claim"]
    assert (claim["measure"], claim["answer"]) == ("rank_correlation", "supported")
    assert claim["over_margin"] == "better"
    assert found["rank_correlation"]["adjusted_error_auroc"].value == 1
    assert found["centre_shift"]["finds_errors"] == "not supported"
    shown = [(row["measure"], row["series"]) for row in rows]
    named = [f", {name.replace('_', ' ')}" for name in found["margin"] if name in detection.NAMED]
    there = [label for label in named if ("margin", label) in shown]
    assert shown == [(measure, label) for measure in ("margin", *MEASURES) for label in there]
    assert there


def test_instability_of_one_named_class_is_no_claim_about_errors():
    """Maps of positive calls move more, and positive calls are wrong more often; within a call nothing is known."""
    cases, rng = made_cases(1200), np.random.default_rng(2)
    called = cases["target"] == 1
    cases["error"] = (rng.random(1200) < np.where(called, 0.45, 0.1)).astype(int)
    for measure in stability.SIMILARITIES:
        cases[measure] = np.where(called, 0.3, 0.8) + 0.05 * rng.normal(size=1200)
    found, _ = find_errors(cases, PARAMS)
    assert found["rank_correlation"]["pooled_error_auroc"].low > 0.6
    assert found["rank_correlation"]["rests_on"] == "both"
    assert found["claim"]["answer"] == "not supported"


def test_a_claim_without_errors_is_not_tested():
    found, rows = find_errors(made_cases().assign(error=0), PARAMS)
    assert found["claim"]["answer"] == found["claim"]["over_margin"] == "cannot be tested"
    assert "0 errors and " in found["rank_correlation"]["adjusted_error_auroc"].absent
    assert rows == []


def test_what_is_added_to_the_confidence_is_learned_from_logits_that_other_patients_calibrated():
    cases, logits, original = made_cases(400), [], detection.detectors

    def detectors(error, logit, *args, **options):
        logits.append(np.asarray(logit))
        return original(error, logit, *args, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(detection, "detectors", detectors)
        find_errors(cases.assign(cross_fitted_logit=cases["logit"] / 2), PARAMS)
    np.testing.assert_array_equal(logits[0], cases["logit"] / 2)


def test_maps_come_back_case_by_case_under_each_change():
    images, changes = smooth_images(5), {"b": PERTURBATIONS["brightness"], "n": PERTURBATIONS["noise"]}
    maps: list[np.ndarray] = []

    def explain(levels: np.ndarray) -> Explained:
        explained = brightness_as_map(levels)
        maps.append(explained.maps)
        return explained

    compared = stability.stability(explain, images, changes, target=np.ones(5, int), batch_size=2)
    before = brightness_as_map(images.astype(np.float32) / 255)
    found = by_change(compared, [of_batch for k, of_batch in enumerate(maps) if k % 3], changes)
    for name, change in changes.items():
        alone = brightness_as_map(change.apply(images.astype(np.float32) / 255))
        np.testing.assert_allclose(found[name].maps, alone.maps, atol=1e-6)
        np.testing.assert_allclose(found[name].logit, alone.logit, atol=1e-6)
        assert not np.allclose(found[name].maps, before.maps)


def test_a_new_image_is_as_unstable_as_it_was_among_the_cases():
    images = np.random.default_rng(0).integers(0, 256, (120, 16, 16), dtype=np.uint8)
    images[7] = 128  # a constant map is like nothing
    own = brightness_as_map(images.astype(np.float32) / 255)
    calibrator, cases = Calibrator("identity", {}), made_cases().drop(columns=[*KEPT, *MEASURES], errors="ignore")
    known = "net", cases, images, brightness_as_map, own, own, calibrator, PERTURBATIONS, PARAMS
    expected = compare(*known).cases["instability"]
    new = Explained(own.logit[5:9], own.maps[5:9])
    found = instability(brightness_as_map, images[5:9], new, PERTURBATIONS)
    np.testing.assert_allclose(found, expected[5:9], atol=1e-6)
    assert np.isnan(found).tolist() == [False, False, True, False]


def test_the_gallery_shows_the_extremes_of_right_and_wrong():
    chosen = most_and_least_stable(made_cases())
    test = made_cases().query("split == 'test'")
    for words, error in (("right", 0), ("wrong", 1)):
        ordered = test[test["error"] == error].sort_values("instability").index
        assert list(chosen.index[chosen["kind"] == f"stable, {words}"]) == list(ordered[:2])
        assert list(chosen.index[chosen["kind"] == f"unstable, {words}"]) == list(ordered[:-3:-1])


@pytest.mark.parametrize("n_wrong", [0, 1, 2, 3])
def test_no_case_is_shown_twice(n_wrong):
    cases = made_cases()
    wrong = cases.index[(cases["split"] == "test") & (cases["error"] == 1)]
    chosen = most_and_least_stable(cases.drop(wrong[n_wrong:]))
    assert chosen.index.is_unique
    assert (chosen["error"] == 1).sum() == n_wrong


def test_there_is_no_gallery_without_cases():
    cases = made_cases().assign(instability=np.nan)
    assert gallery("net", np.zeros((120, 64, 64)), Answer({}, cases, pd.DataFrame(), {}, {}), {}) == {}


def test_the_decision_is_taken_at_the_threshold():
    images = np.full((2, 64, 64), 120, np.uint8)
    images[1] = 200
    options = {"perturbations": {"b": PERTURBATIONS["brightness"]}, "target": np.ones(2, int), "threshold": 0.35}
    found = stability.stability(brightness_as_map, images, **options)
    assert found["flipped"].tolist() == [False, True]


def test_each_changed_image_is_read_once_and_a_known_one_not_at_all():
    read = []

    def explain(levels: np.ndarray) -> Explained:
        read.append(len(levels))
        return brightness_as_map(levels)

    images = smooth_images()
    known = brightness_as_map(images.astype(np.float32) / 255)
    stability.stability(explain, images, PERTURBATIONS, target=np.ones(3, int), original=known, batch_size=2)
    assert sum(read) == 3 * len(PERTURBATIONS)


def test_a_colour_image_of_three_equal_channels_changes_like_the_grey_one():
    grey = np.random.default_rng(0).random((2, 24, 24), dtype=np.float32)
    colour = np.repeat(grey[..., None], 3, axis=3)
    sizes = {"rotation": 5.0, "brightness": 0.1, "translation": 0.03, "contrast": 1.2, "noise": 0.0, "blur": 0.7}
    for name, change in perturbations.mild(sizes, seed=0).items():
        np.testing.assert_allclose(change.apply(colour)[..., 2], change.apply(grey), atol=1e-6, err_msg=name)

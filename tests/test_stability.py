import numpy as np
import pytest
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity as skimage_ssim
from skimage.transform import resize

from tmv_lib import stability
from tmv_lib.explanations import Explained
from tmv_lib.stability import centre_shift, rank_correlation, structural_similarity, top_overlap


def random_maps(n: int = 5, side: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, side, side))


def smooth_images(n: int = 3, side: int = 64) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side] / side
    waves = [np.sin(6 * rows * (k + 1)) + np.cos(5 * columns + k) for k in range(n)]
    return ((np.stack(waves) + 2) * 60).astype(np.uint8)


PERTURBATIONS = {
    "rotation": stability.rotation(5),
    "translation": stability.translation(0.05),
    "brightness": stability.brightness(0.1),
    "contrast": stability.contrast(1.2),
    "noise": stability.noise(0.03, seed=0),
    "blur": stability.blur(1.0),
}


def test_rank_correlation_is_spearmans_with_average_ties():
    a, b = random_maps().round().reshape(5, -1), random_maps(seed=1).round().reshape(5, -1)
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(rank_correlation(a, b), expected, atol=1e-12)


def test_a_constant_map_has_no_rank_correlation():
    a = random_maps(2).reshape(2, -1)
    assert np.isnan(rank_correlation(a, np.ones_like(a))).all()


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


def test_centre_shift_by_hand():
    a, b = np.zeros((1, 10, 10)), np.zeros((1, 10, 10))
    a[0, 2, 2], b[0, 5, 6] = 1, 1
    assert centre_shift(a, b)[0] == pytest.approx(0.5)


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
    back = stability.warp(PERTURBATIONS[name].apply(levels), stability.inverse(matrix))
    inside = stability.valid_cells((64, 64), matrix)
    assert 0.7 < inside.mean() < 1
    assert np.abs(back - levels)[:, inside].max() < 0.05


def test_translation_moves_right_and_down():
    levels = np.zeros((1, 20, 20), np.float32)
    levels[0, 5, 5] = 1
    moved = stability.translation(0.1).apply(levels)
    assert np.unravel_index(moved[0].argmax(), (20, 20)) == (7, 7)


def brightness_as_map(levels: np.ndarray) -> Explained:
    """A perfectly equivariant explainer: the map is the image on an 8 x 8 grid."""
    n, side = levels.shape[:2]
    maps = levels.reshape(n, 8, side // 8, 8, side // 8).mean((2, 4))
    return Explained(levels.mean((1, 2)) - 0.5, maps)


def test_an_equivariant_explainer_loses_no_more_than_interpolation():
    found = stability.stability(brightness_as_map, smooth_images(), PERTURBATIONS, target=np.ones(3, int), batch_size=2)
    assert len(found) == 3 * len(PERTURBATIONS)
    assert (found["rank_correlation"] > 0.9).all()  # brightness clips, which costs some ranks
    turned = found[found["perturbation"] == "rotation"]
    assert (turned["rank_correlation"] > turned["floor"] - 0.03).all()


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
    assert found["rank_correlation"].isna().all()


def test_knowing_the_original_changes_nothing():
    images = smooth_images()
    known = brightness_as_map(images.astype(np.float32) / 255)
    options = {"target": np.array([1, -1, 1])}
    one = stability.stability(brightness_as_map, images, PERTURBATIONS, **options)
    other = stability.stability(brightness_as_map, images, PERTURBATIONS, original=known, **options)
    assert one.equals(other)

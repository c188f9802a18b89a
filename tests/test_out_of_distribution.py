"""What is usual is refused as rarely as promised, and what is foreign is refused."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tmv_lib.data.foreign import foreign_images
from tmv_lib.uncertainty import out_of_distribution

SIDE = 40


def made(n: int, seed: int) -> np.ndarray:
    """Films of a made-up body: bright below, a bright blob to the left of the middle, soft noise."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[:SIDE, :SIDE] / SIDE
    blob = np.exp(-((across - rng.normal(0.3, 0.03, (n, 1, 1))) ** 2 + (down - 0.45) ** 2) / 0.02)
    levels = rng.normal(1, 0.1, (n, 1, 1)) * (60 * down + 80 * blob) + rng.normal(50, 5, (n, 1, 1))
    soft = gaussian_filter(rng.normal(0, 20, (n, SIDE, SIDE)), (0, 1, 1))
    return (levels + soft).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def fitted() -> out_of_distribution.PixelDetectors:
    return out_of_distribution.fit_pixel_detectors(made(400, 0))


@pytest.fixture(scope="module")
def usual(fitted) -> np.ndarray:
    return out_of_distribution.pixel_oddity(made(300, 1), fitted)


def by_hand(image: np.ndarray, usual: np.ndarray) -> float:
    """The formula of `joint_p_value`, word for word."""
    x = np.vstack([image, usual])
    n, m = len(x), x.shape[1]
    r = [min(sum(x[k, j] >= x[i, j] for k in range(n)) for j in range(m)) for i in range(n)]
    iqr = np.subtract(*np.percentile(x, [75, 25], axis=0))
    z = [max(0, *((x[i, j] - np.median(x[:, j])) / iqr[j] for j in range(m))) for i in range(n)]
    s = [r[i] + 1 / (1 + z[i]) for i in range(n)]
    return sum(one <= s[0] for one in s) / n


def test_the_joint_p_value_is_its_formula_with_and_without_ties():
    rng = np.random.default_rng(0)
    for draw in (lambda shape: rng.normal(size=shape), lambda shape: rng.integers(0, 4, shape).astype(float)):
        usual, new = draw((20, 3)), draw((30, 3))
        expected = [by_hand(image, usual) for image in new]
        np.testing.assert_allclose(out_of_distribution.joint_p_value(new, usual), expected)
        left_out = [by_hand(usual[i], np.delete(usual, i, axis=0)) for i in range(20)]
        np.testing.assert_allclose(out_of_distribution.usual_p_value(usual), left_out)


def test_one_detector_alone_is_the_conformal_p_value():
    rng = np.random.default_rng(0)
    usual, new = rng.normal(size=(50, 1)), rng.normal(size=(20, 1))
    expected = (1 + (usual[:, 0] >= new).sum(axis=1)) / 51
    np.testing.assert_allclose(out_of_distribution.joint_p_value(new, usual), expected)
    np.testing.assert_allclose(out_of_distribution.alone(new, usual)[:, 0], expected)


def test_it_is_never_above_bonferroni_and_moves_with_no_unit_or_order():
    rng = np.random.default_rng(0)
    usual, new = rng.normal(size=(60, 4)), 2 * rng.normal(size=(50, 4))
    p_value = out_of_distribution.joint_p_value(new, usual)
    assert (p_value <= 4 * out_of_distribution.alone(new, usual).min(axis=1) + 1e-12).all()
    scaled = out_of_distribution.joint_p_value(4 * new[:, ::-1] + 1, 4 * usual[::-1, ::-1] + 1)
    np.testing.assert_array_equal(p_value, scaled)
    again = out_of_distribution.joint_p_value(np.repeat(new, 2, axis=1), np.repeat(usual, 2, axis=1))
    np.testing.assert_array_equal(p_value, again)  # Bonferroni would pay for a detector that says the same


@pytest.mark.parametrize("shared", [0.0, 3.0])
def test_of_usual_images_as_many_are_refused_as_promised_whether_detectors_agree_or_not(shared):
    rng = np.random.default_rng(0)
    refused = []
    for _ in range(2000):
        x = rng.normal(size=(201, 5)) + shared * rng.normal(size=(201, 1))
        refused.append(out_of_distribution.joint_p_value(x[:1], x[1:])[0] <= 0.05)
    assert 0.03 < np.mean(refused) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


def test_at_most_the_promised_share_of_validation_is_refused():
    rng = np.random.default_rng(0)
    for n in (19, 20, 45, 100):
        assert (
            out_of_distribution.usual_p_value(rng.normal(size=(n, 6))) <= out_of_distribution.REFUSED
        ).mean() <= out_of_distribution.REFUSED


@pytest.mark.parametrize("m", [1, 8, 50])
def test_what_one_detector_finds_far_odder_has_the_least_p_value_however_many_others_there_are(m):
    usual = np.random.default_rng(0).normal(size=(30, m))
    image = np.zeros((1, m))
    image[0, -1] = 99
    assert out_of_distribution.joint_p_value(image, usual)[0] == pytest.approx(1 / 31)


def test_usual_images_pass_and_foreign_ones_are_refused(fitted, usual):
    films = made(300, 2)
    assert (
        out_of_distribution.joint_p_value(out_of_distribution.pixel_oddity(films, fitted), usual)
        <= out_of_distribution.REFUSED
    ).mean() < 0.09
    for kind, images in foreign_images(films[:50], rng=np.random.default_rng(0)).items():
        refused = (
            out_of_distribution.joint_p_value(out_of_distribution.pixel_oddity(images, fitted), usual)
            <= out_of_distribution.REFUSED
        )
        assert refused.mean() > 0.95, kind


def test_each_detector_sees_what_it_is_named_after(fitted, usual):
    limit = np.quantile(usual, 0.99, axis=0)
    films = made(50, 2)
    elsewhere = np.roll(films, SIDE // 3, axis=2)
    rough = (films + np.random.default_rng(0).normal(0, 40, films.shape)).clip(0, 255).astype(np.uint8)
    for place, images in enumerate((elsewhere, rough, films[:, :, ::-1])):
        assert (out_of_distribution.pixel_oddity(images, fitted)[:, place] > limit[place]).mean() > 0.9, (
            out_of_distribution.PIXELS[place]
        )


def test_layout_and_orientation_do_not_depend_on_exposure_and_contrast(fitted):
    films = made(20, 2)
    before, after = (
        out_of_distribution.pixel_oddity(images, fitted) for images in (films, (films // 2 + 20).astype(np.uint8))
    )
    np.testing.assert_allclose(before[:, [0, 2]], after[:, [0, 2]], rtol=0.1, atol=0.5)
    assert (np.abs(before[:, 1] - after[:, 1]) > 0.1).any()


def test_layout_is_the_mahalanobis_distance_of_the_averaged_image(fitted):
    from sklearn.covariance import LedoitWolf

    def coarse(images: np.ndarray) -> np.ndarray:
        cells = images.astype(float).repeat(2, axis=1).repeat(2, axis=2).reshape(-1, 16, 5, 16, 5).mean(axis=(2, 4))
        flat = cells.reshape(len(cells), -1) - cells.mean(axis=(1, 2))[:, None]
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    films = made(30, 2)
    peer = LedoitWolf().fit(coarse(made(400, 0)))
    expected = np.sqrt(peer.mahalanobis(coarse(films)))
    np.testing.assert_allclose(out_of_distribution.pixel_oddity(films, fitted)[:, 0], expected, rtol=1e-6)


def test_every_frequency_but_the_mean_lies_in_one_band():
    for side in (16, 28, 40, 112):
        bands = out_of_distribution._bands(side)
        assert ((bands > 0).sum(axis=1) == (np.arange(len(bands)) > 0)).all()
        np.testing.assert_allclose(bands.sum(axis=0), 1)


def test_stored_and_read_they_answer_the_same(fitted, tmp_path):
    path = tmp_path / "pixels.npz"
    out_of_distribution.write_pixel_detectors(path, fitted)
    images = made(5, 2)
    again = out_of_distribution.pixel_oddity(images, out_of_distribution.read_pixel_detectors(path))
    np.testing.assert_array_equal(again, out_of_distribution.pixel_oddity(images, fitted))
    first = path.read_bytes()
    out_of_distribution.write_pixel_detectors(path, fitted)
    assert path.read_bytes() == first
    path.write_bytes(first[:100])
    with pytest.raises(ValueError, match=r"pixels\.npz: no pixel detectors"):
        out_of_distribution.read_pixel_detectors(path)
    with pytest.raises(ValueError, match=r"none\.npz: no such file"):
        out_of_distribution.read_pixel_detectors(tmp_path / "none.npz")


def test_what_cannot_be_judged_is_named(fitted):
    with pytest.raises(ValueError, match="must be uint8"):
        out_of_distribution.fit_pixel_detectors(np.zeros((9, SIDE, SIDE)))
    with pytest.raises(ValueError, match="at least 2, found 1"):
        out_of_distribution.fit_pixel_detectors(made(1, 0))
    with pytest.raises(ValueError, match="found one layout for all"):
        out_of_distribution.fit_pixel_detectors(np.zeros((9, SIDE, SIDE), np.uint8))
    with pytest.raises(ValueError, match="the side that was fitted, found 80"):
        out_of_distribution.pixel_oddity(np.zeros((1, 80, 80), np.uint8), fitted)
    with pytest.raises(ValueError, match=r"found \(1, 2\) and \(4, 3\)"):
        out_of_distribution.joint_p_value([[1, 2]], np.ones((4, 3)))
    with pytest.raises(ValueError, match="must be finite"):
        out_of_distribution.joint_p_value([[np.nan]], np.ones((4, 1)))
    with pytest.raises(ValueError, match=r"^18 validation images, .* takes at least 19$"):
        out_of_distribution.require(18)
    out_of_distribution.require(19)

import numpy as np
import pytest

from tmv_lib.foreign import foreign_images

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 6, 6), dtype=np.uint8)


def foreign(seed: int = 0) -> dict[str, np.ndarray]:
    return foreign_images(IMAGES, rng=np.random.default_rng(seed))


def test_noise_keeps_the_histogram_of_each_image_and_nothing_else():
    noise = foreign()["noise"]
    np.testing.assert_array_equal(np.sort(noise.reshape(4, -1)), np.sort(IMAGES.reshape(4, -1)))
    assert (noise != IMAGES).any((1, 2)).all()
    assert (noise != foreign(1)["noise"]).any()


def test_twice_inverted_and_four_times_rotated_is_the_image():
    spoiled = foreign()
    np.testing.assert_array_equal(255 - spoiled["inverted"], IMAGES)
    np.testing.assert_array_equal(np.rot90(spoiled["rotated"], 3, axes=(1, 2)), IMAGES)


def test_all_kinds_keep_shape_and_type():
    assert {(kind.shape, kind.dtype) for kind in foreign().values()} == {(IMAGES.shape, IMAGES.dtype)}


def test_images_that_are_not_square_are_named():
    with pytest.raises(ValueError, match=r"found shape \(4, 6, 5\)"):
        foreign_images(IMAGES[:, :, :5], rng=np.random.default_rng(0))

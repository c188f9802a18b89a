import numpy as np
import pytest

from tmv_lib.data.foreign import foreign_images

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 6), dtype=np.uint8)


def foreign(seed: int = 0) -> dict[str, np.ndarray]:
    return foreign_images(IMAGES, rng=np.random.default_rng(seed))


def test_noise_keeps_the_histogram_of_each_image_and_nothing_else():
    noise = foreign()["noise"]
    np.testing.assert_array_equal(np.sort(noise.reshape(5, -1)), np.sort(IMAGES.reshape(5, -1)))
    assert (noise != IMAGES).any((1, 2)).all()
    assert (noise != foreign(1)["noise"]).any()


def test_undone_it_is_the_image():
    spoiled = foreign()
    np.testing.assert_array_equal(255 - spoiled["inverted"], IMAGES)
    np.testing.assert_array_equal(np.rot90(spoiled["rotated_90"], 3, axes=(1, 2)), IMAGES)
    np.testing.assert_array_equal(spoiled["rotated_180"][:, ::-1, ::-1], IMAGES)
    np.testing.assert_array_equal(spoiled["mirrored"][:, :, ::-1], IMAGES)


def test_uniform_runs_from_black_to_white_and_a_gradient_runs_one_way_from_darkest_to_brightest():
    spoiled = foreign()
    assert (np.ptp(spoiled["uniform"], axis=(1, 2)) == 0).all()
    assert spoiled["uniform"][:, 0, 0].tolist() == [0, 63, 127, 191, 255]
    for ramp, image, axis in zip(spoiled["gradient"], IMAGES, (0, 1, 0, 1, 0), strict=True):
        assert (ramp.min(), ramp.max()) == (image.min(), image.max())
        assert np.ptp(ramp, axis=1 - axis).max() == 0  # level across
        assert len(set(np.sign(np.diff(ramp.astype(int), axis=axis)).ravel())) == 1  # and one way along
    assert spoiled["gradient"][0, 0, 0] == IMAGES[0].min()  # the first grows brighter downwards
    assert spoiled["gradient"][2, 0, 0] == IMAGES[2].max()


def test_all_kinds_keep_shape_and_type():
    assert {(kind.shape, kind.dtype) for kind in foreign().values()} == {(IMAGES.shape, IMAGES.dtype)}


@pytest.mark.parametrize("images", [IMAGES[:, :, :5], IMAGES[:0]])
def test_images_that_are_not_square_or_none_are_named(images):
    with pytest.raises(ValueError, match=r"found shape \(\d, 6, \d\)"):
        foreign_images(images, rng=np.random.default_rng(0))


def test_in_colour_the_channels_of_a_pixel_stay_together_but_where_they_are_swapped():
    colour = np.random.default_rng(1).integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)
    spoiled = foreign_images(colour, rng=np.random.default_rng(0))
    assert all(of.shape == colour.shape and of.dtype == np.uint8 for of in spoiled.values())
    pixels = [sorted(map(tuple, image.reshape(-1, 3).tolist())) for image in (colour[0], spoiled["noise"][0])]
    assert pixels[0] == pixels[1]
    np.testing.assert_array_equal(spoiled["channels_swapped"][..., 0], colour[..., 2])
    np.testing.assert_array_equal(spoiled["rotated_180"][:, ::-1, ::-1], colour)

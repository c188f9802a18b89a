"""Pictures from anywhere: what is read, how it is scaled and turned, and what is refused."""

import os

import numpy as np
import pytest
from PIL import Image

from tmv_lib.data import images
from tmv_lib.data.images import read_grey, read_image, read_squares, square

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "gif", "webp", "jp2"])
def test_one_picture_is_the_same_in_every_lossless_format(tmp_path, ending):
    lossless = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(RAMP).save(tmp_path / f"a.{ending}", **lossless)
    levels, remark = read_grey(tmp_path / f"a.{ending}")
    np.testing.assert_allclose(levels.astype(int), RAMP, atol=1 if ending == "webp" else 0)
    assert remark == ""


@pytest.mark.parametrize(("orientation", "turned"), [(1, RAMP), (3, RAMP[::-1, ::-1]), (6, np.rot90(RAMP, -1))])
def test_a_picture_is_turned_as_its_exif_orientation_says(tmp_path, orientation, turned):
    picture = Image.fromarray(RAMP)
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_grey(tmp_path / "a.png")[0], turned)


@pytest.mark.parametrize(("bits", "highest"), [(10, 1023), (12, 4095), (14, 16383)])
def test_fewer_bits_in_a_file_of_sixteen_are_scaled_by_what_is_there_and_told(tmp_path, bits, highest):
    deep = np.linspace(0, highest, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    levels, remark = read_grey(tmp_path / "a.png")
    np.testing.assert_array_equal(levels, np.rint(deep * (255 / highest)))
    assert remark == f"its levels reach {highest}: read as {bits} bits"


def test_sixteen_bits_keep_their_upper_eight_without_a_remark(tmp_path):
    Image.fromarray(RAMP.astype(np.uint16) * 256).save(tmp_path / "a.png")
    levels, remark = read_grey(tmp_path / "a.png")
    np.testing.assert_array_equal(levels, RAMP)
    assert remark == ""


def animated(path):
    Image.fromarray(RAMP).save(path, save_all=True, append_images=[Image.fromarray(255 - RAMP)])


def transparent(path):
    Image.fromarray(np.dstack([RAMP, RAMP, RAMP, RAMP])).save(path)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("a.gif", animated, "2 frames, only single images are read"),
        ("a.tif", animated, "2 frames"),
        ("a.png", transparent, "transparent pixels"),
        ("a.tif", lambda path: Image.fromarray(RAMP.astype(np.float32)).save(path), "floating-point levels"),
        ("a.tif", lambda path: Image.fromarray(RAMP.astype(np.int32) - 9).save(path), "levels from -9 to 246"),
        ("a.png", lambda path: Image.fromarray(RAMP).save(path, "AVIF"), "cannot identify image file"),
        ("a.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40)), "not a readable image"),
        ("a.jpg", lambda path: path.write_bytes(b""), "not a readable image"),
    ],
)
def test_what_is_no_grey_picture_is_refused_by_name(tmp_path, name, make, words):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}: not a readable image.*{words}|{name}: {words}"):
        read_grey(tmp_path / name)


def test_pixels_and_bytes_are_bounded_before_anything_is_decoded(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((1, 20_000), np.uint8)).save(tmp_path / "long.png")
    with pytest.raises(ValueError, match=r"long\.png: 20000 x 1 pixels, at most 14,000 a side"):
        read_image((tmp_path / "long.png").read_bytes(), name="long.png")
    monkeypatch.setattr(images, "MOST_PIXELS", 200)
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png.*16 x 16 pixels, at most 200"):
        read_image((tmp_path / "a.png").read_bytes(), name="a.png")
    monkeypatch.setattr(images, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match=r"a\.png: 0 MB, at most 0 are read"):
        images.content_of(tmp_path / "a.png")


def test_one_that_cannot_be_read_leaves_the_others_alone(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "good.png")
    os.mkfifo(tmp_path / "pipe.png")  # to open it would hang
    Image.fromarray(np.where(RAMP > 99, 200, 9).astype(np.uint8)).save(tmp_path / "two.png")
    names = ["good.png", "pipe.png", "two.png"]
    found, squares = read_squares(tmp_path, names, size=16, how="stretch", progress=iter)
    assert [file.get("problem", "")[-18:] for file in found] == ["", "not a regular file", ""]
    assert [file.get("remark") for file in found] == ["", None, "it shows 2 grey levels only"]
    np.testing.assert_array_equal(squares[0], square(RAMP, size=16, how="stretch"))

"""Pictures as files, and how they become squares of one size."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from tmv_lib.data.dicom import SUFFIXES, read_dicom, read_header
from tmv_lib.data.levels import MOST_PIXELS, depth, remark_on
from tmv_lib.pipeline.files import Pile

How = Literal["stretch", "pad", "crop"]
Channels = Literal["grey", "colour"]
Progress = Callable[[Iterable[Any]], Iterable[Any]]  # such as `tqdm`

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000")
MOST_BYTES = 256 * 2**20  # of one file
MOST_SIDE = 14_000  # pixels: `pad` makes a square of the longer side
BATCH = 64  # pictures read at once, by a thread for each processor core: decoding runs outside Python
TINT = 16  # levels between the channels of a pixel, up to which a picture counts as grey


class Read(NamedTuple):
    """A picture as levels.

    levels: uint8 (height, width), 0 black and 255 white, or (height, width, 3) in colour. header: what DICOM says
    beside it, empty for others. remark: what the levels do not show, that they were scaled by the largest one, say; or
    "". converted: `colour_as_grey`, `grey_as_colour`, or "" where the file had the channels that were asked for.
    """

    levels: np.ndarray
    header: dict[str, str]
    remark: str
    converted: str = ""


def read_grey(path: str | Path | BinaryIO) -> tuple[np.ndarray, str]:
    """A picture as grey levels, uint8 (height, width), with a remark or "", as `read_picture`."""
    levels, remark, _ = read_picture(path, channels="grey")
    return levels, remark


def read_picture(path: str | Path | BinaryIO, *, channels: Channels) -> tuple[np.ndarray, str, bool]:
    """Read a picture of one of `FORMATS`: its levels as in `Read`, a remark or "", and whether its pixels have colour.

    It is turned as its EXIF orientation says. Read as grey, colour becomes luminance (ITU-R 601); as colour, grey is
    there three times. Deeper files are scaled by the
    smallest depth of 8, 10, 12, 14 and 16 bits that holds their largest level, since no header says how many bits are
    in use. Raises ValueError naming the file where it cannot be read, is larger than `MOST_PIXELS`, has several frames,
    transparent pixels, or floating-point or negative levels.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels, at most {MOST_PIXELS:,} are read")
            if (frames := getattr(picture, "n_frames", 1)) != 1:
                raise ValueError(f"{frames} frames, only single images are read")
            upright = ImageOps.exif_transpose(picture)
            if upright.has_transparency_data and np.asarray(upright.convert("RGBA"))[..., 3].min() < 255:
                raise ValueError("transparent pixels, which have no grey level")
            if upright.mode == "F":
                raise ValueError("floating-point levels, whose range nothing says")
            if upright.mode.startswith("I"):
                return *_of_depth(np.asarray(upright)), False
            if upright.mode in ("1", "L", "LA"):
                return np.asarray(upright.convert("L")), "", False
            colours = upright.convert("RGB")
            if channels == "colour":
                return np.asarray(colours), "", _has_colour(np.asarray(colours))
            return np.asarray(upright.convert("L")), "", _has_colour(np.asarray(colours))
    except Exception as error:  # a damaged file raises errors of many kinds
        raise ValueError(f"{path}: not a readable image ({error})") from error


def _has_colour(levels: np.ndarray) -> bool:
    """Whether more than one pixel in a hundred has channels further apart than `TINT`; of large pictures some."""
    step = max(1, min(levels.shape[:2]) // 128)
    some = levels[::step, ::step].astype(np.int16)
    return bool((np.abs(some[..., 1:] - some[..., :1]).max(axis=2) > TINT).mean() > 0.01)


def _of_depth(levels: np.ndarray) -> tuple[np.ndarray, str]:
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high >= 2**16:
        raise ValueError(f"levels from {low} to {high}, 0 to 65535 are read")
    bits = depth(high)
    if bits == 16:
        return (levels // 256).astype(np.uint8), ""
    return np.rint(levels * (255 / (2**bits - 1))).astype(np.uint8), f"its levels reach {high}: read as {bits} bits"


def read_image(content: bytes, *, name: str, channels: Channels = "grey") -> Read:
    """Read the content of a picture or a DICOM file, which is grey.

    name: of the file; its suffix counts where the content does not say DICOM. Raises ValueError with this name where it
    cannot be read.
    """
    stream = BytesIO(content)
    try:
        if content[128:132] == b"DICM" or Path(name).suffix.lower() in SUFFIXES:
            levels, remark, header, has_colour = *read_dicom(stream), read_header(BytesIO(content)), False
        else:
            levels, remark, has_colour = read_picture(stream, channels=channels)
            header = {}
    except ValueError as error:
        raise ValueError(str(error).replace(str(stream), name)) from error
    if max(levels.shape) > MOST_SIDE:
        height, width = levels.shape[:2]
        raise ValueError(f"{name}: {width} x {height} pixels, at most {MOST_SIDE:,} a side are read")
    remark = remark or remark_on(levels)
    if channels == "grey":
        return Read(levels, header, remark, "colour_as_grey" if has_colour else "")
    wide = levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, axis=2)
    return Read(wide, header, remark, "" if has_colour else "grey_as_colour")


def content_of(path: Path) -> bytes:
    """All bytes of a regular file of at most `MOST_BYTES`. Raises ValueError naming any other."""
    if not path.is_file():
        raise ValueError(f"{path}: not a regular file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{path}: {size >> 20} MB, at most {MOST_BYTES >> 20} are read")
    return path.read_bytes()


def read_squares(
    root: Path, names: list[str], *, size: int, how: How, progress: Progress, channels: Channels = "grey"
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Read these pictures and DICOM files below root.

    Returns of each file `problem`, or `width` and `height` in pixels, `remark`, `converted` and what its DICOM header
    says; and the readable images, uint8 (n, size, size) or in colour (n, size, size, 3), as `square` makes them. Raises
    ValueError where there is none.
    """

    def one(name: str) -> tuple[dict[str, Any], np.ndarray | None]:
        try:
            read = read_image(content_of(root / name), name=name, channels=channels)
            image = square(read.levels, size=size, how=how)
        except (OSError, ValueError) as error:
            return {"problem": str(error)}, None
        height, width = read.levels.shape[:2]
        told = {"width": width, "height": height, "remark": read.remark, "converted": read.converted}
        return {**read.header, **told}, image

    found: list[dict[str, Any]] = []
    images = Pile()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        batches = (threads.map(one, names[k : k + BATCH]) for k in range(0, len(names), BATCH))
        for _, (file, image) in zip(progress(names), chain.from_iterable(batches), strict=True):
            found.append(file)
            if image is not None:
                images.put(image)
    if all("problem" in file for file in found):
        raise ValueError(f"{root}: none of {len(names)} images can be read; the first: {found[0]['problem']}")
    return found, images.stacked()


def told(names: list[str], found: list[dict[str, Any]], what: str) -> pd.DataFrame:
    """`path` and `problem` of the files of which `read_squares` has a `problem`, or a `remark`."""
    table = pd.DataFrame({"path": names, "problem": [file.get(what) or None for file in found]})
    return table.dropna(ignore_index=True)


def conversions(found: list[dict[str, Any]]) -> dict[str, int]:
    """How many files `read_squares` read in other channels than their own, by way."""
    ways = [file["converted"] for file in found if file.get("converted")]
    return {way: ways.count(way) for way in sorted(set(ways))}


def square(image: np.ndarray, *, size: int, how: How) -> np.ndarray:
    """Bring a uint8 (height, width) image, or one in colour, to uint8 (size, size), with antialiasing.

    how: `stretch` ignores the aspect ratio, `pad` adds black on the short sides, `crop` keeps the centre.
    """
    height, width = image.shape[:2]
    if how == "pad":
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        around = [(top, side - height - top), (left, side - width - left), (0, 0)]
        image = np.pad(image, around[: image.ndim])
    elif how == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    if image.shape[:2] == (size, size):
        return np.ascontiguousarray(image)
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))

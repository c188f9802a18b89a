"""Pictures as files, and how they become squares of one size."""

from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pandas as pd
from PIL import Image

from tmv_lib.data.dicom import SUFFIXES, read_dicom, read_header

How = Literal["stretch", "pad", "crop"]
Progress = Callable[[Iterable[Any]], Iterable[Any]]  # such as `tqdm`


def read_grey(path: str | Path | BinaryIO) -> np.ndarray:
    """Read a PNG or JPEG as grey levels, uint8 (height, width).

    16-bit files keep their upper eight bits; colour becomes luminance (ITU-R 601). Raises ValueError naming
    the file where it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith("I"):
                return (np.asarray(picture, dtype=np.int64).clip(0, 65535) // 256).astype(np.uint8)
            return np.asarray(picture.convert("L"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error


def read_image(content: bytes, *, name: str) -> tuple[np.ndarray, dict[str, str]]:
    """Grey levels, uint8 (height, width), and DICOM header (empty for others) of the content of a PNG, JPEG or DICOM.

    name: of the file; its suffix counts where the content does not say DICOM. Raises ValueError with this name where it
    cannot be read.
    """
    stream = BytesIO(content)
    try:
        if content[128:132] == b"DICM" or Path(name).suffix.lower() in SUFFIXES:
            return read_dicom(stream), read_header(BytesIO(content))
        return read_grey(stream), {}
    except ValueError as error:
        raise ValueError(str(error).replace(str(stream), name)) from error


def read_squares(
    root: Path, names: list[str], *, size: int, how: How, progress: Progress
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Read these PNG, JPEG and DICOM files below root.

    Returns of each file `problem`, or `width` and `height` in pixels and what its DICOM header says; and the readable
    images, uint8 (n, size, size), as `square` makes them. Raises ValueError where there is none.
    """
    found: list[dict[str, Any]] = []
    images = []
    for name in progress(names):
        try:
            image, header = read_image((root / name).read_bytes(), name=name)
            images.append(square(image, size=size, how=how))
            found.append({**header, "width": image.shape[1], "height": image.shape[0]})
        except (OSError, ValueError) as error:
            found.append({"problem": str(error)})
    if not images:
        raise ValueError(f"{root}: none of {len(names)} images can be read; the first: {found[0]['problem']}")
    return found, np.stack(images)


def unreadable(names: list[str], found: list[dict[str, Any]]) -> pd.DataFrame:
    """`path` and `problem` of what `read_squares` could not read."""
    table = pd.DataFrame({"path": names, "problem": [file.get("problem") for file in found]})
    return table.dropna(ignore_index=True)


def square(image: np.ndarray, *, size: int, how: How) -> np.ndarray:
    """Bring a uint8 (height, width) image to uint8 (size, size), with antialiasing.

    how: `stretch` ignores the aspect ratio, `pad` adds black on the short sides, `crop` keeps the centre.
    """
    height, width = image.shape
    if how == "pad":
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        image = np.pad(image, ((top, side - height - top), (left, side - width - left)))
    elif how == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    if image.shape == (size, size):
        return np.ascontiguousarray(image)
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))

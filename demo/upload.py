"""An uploaded image: read with care in memory, refused where it is unlike the training images, and kept nowhere."""

from io import BytesIO

import numpy as np
import pydicom
from PIL import Image

from tmv_lib.dicom import read_dicom
from tmv_lib.images import read_grey

MOST_BYTES = 20 * 2**20
MOST_PIXELS = 50_000_000  # a large radiograph has 20 million
LEAST_SIDE = 28
KINDS = ("png", "jpg", "jpeg", "dcm", "dicom")


def read(data: bytes) -> np.ndarray:
    """The grey levels of a PNG, JPEG or DICOM file, uint8 (height, width), whatever its name says.

    Raises ValueError with a sentence for a reader where the file is empty, too large, broken, or no such image.
    """
    if not data:
        raise ValueError("This file is empty.")
    if len(data) > MOST_BYTES:
        raise ValueError(f"This file is larger than {MOST_BYTES >> 20} MB.")
    dicom = data[128:132] == b"DICM"
    height, width = _dicom_shape(data) if dicom else _shape(data)
    if height * width > MOST_PIXELS:
        raise ValueError(
            f"This image has {width:,} x {height:,} pixels; at most {MOST_PIXELS // 1_000_000} million are read."
        )
    if min(height, width) < LEAST_SIDE:
        raise ValueError(f"This image has {width} x {height} pixels; at least {LEAST_SIDE} a side are needed.")
    try:
        return read_dicom(BytesIO(data)) if dicom else read_grey(BytesIO(data))
    except ValueError as error:
        raise ValueError("This file is damaged, cut short, or of a kind that is not read.") from error


def _shape(data: bytes) -> tuple[int, int]:
    """Height and width as the file's header says them; no pixel is decoded."""
    try:
        with Image.open(BytesIO(data), formats=["PNG", "JPEG"]) as picture:
            return picture.height, picture.width
    except Image.DecompressionBombError:
        raise ValueError(f"This image has more than {MOST_PIXELS // 1_000_000} million pixels.") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError("This is no PNG, JPEG or DICOM file, whatever its name says.") from error


def _dicom_shape(data: bytes) -> tuple[int, int]:
    # Files come from anywhere, and pydicom answers a broken one with errors of every kind.
    try:
        header = pydicom.dcmread(BytesIO(data), stop_before_pixels=True)
        height, width = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    except Exception as error:
        raise ValueError("This DICOM file cannot be read.") from error
    if not height * width:
        raise ValueError("This DICOM file holds no image.")
    return height, width

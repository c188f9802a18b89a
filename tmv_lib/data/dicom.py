"""DICOM radiographs as grey levels, the way a viewer would show them first."""

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

HEADER = {
    "patient_id": "PatientID",
    "manufacturer": "Manufacturer",
    "view_position": "ViewPosition",
    "study_date": "StudyDate",
}
SUFFIXES = (".dcm", ".dicom")


def is_dicom(path: str | Path) -> bool:
    """Whether the file says that it is DICOM, by its content ("DICM" after 128 bytes) or by its suffix."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM" or Path(path).suffix.lower() in SUFFIXES


def read_dicom(path: str | Path | BinaryIO) -> np.ndarray:
    """Read a single-frame grey image as uint8 (height, width), 0 black and 255 white.

    The chain of DICOM PS3.3 C.11: modality (lookup table, or rescale slope and intercept), then values of
    interest (the first lookup table, else the first window). Where the file names neither, 8-bit images keep
    their range and deeper ones go from their smallest to their largest value. MONOCHROME1 is inverted.
    Padding is black and takes no part in the range. Raises ValueError naming the file where it cannot be
    read, or holds several frames, colour or no image.
    """
    # Files come from anywhere, and pydicom and its decoders answer a broken one with errors of every kind.
    try:
        data = pydicom.dcmread(path)
        _check(data)
        return _display(data, data.pixel_array)
    except Exception as error:
        raise ValueError(f"{path}: not a readable DICOM image ({error})") from error


def read_header(path: str | Path | BinaryIO) -> dict[str, str]:
    """What the file's header says about patient, manufacturer, view position and study date.

    Only the entries that the header fills, under the names of `HEADER`. Raises ValueError naming the file
    where it cannot be read.
    """
    try:
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER.values()))
        found = {name: str(data.get(keyword) or "").strip() for name, keyword in HEADER.items()}
    except Exception as error:
        raise ValueError(f"{path}: not a readable DICOM file ({error})") from error
    return {name: value for name, value in found.items() if value}


def _check(data: Dataset) -> None:
    if "PixelData" not in data:
        raise ValueError(f"no pixel data, modality {data.get('Modality', 'not given')}")
    frames = int(data.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ValueError(f"{frames} frames, only single images are read")
    if data.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"{data.PhotometricInterpretation}, only MONOCHROME1 and MONOCHROME2 are read")


def _display(data: Dataset, stored: np.ndarray) -> np.ndarray:
    shown = ~_padding(data, stored)
    if not shown.any():
        raise ValueError("every pixel is padding")
    values = _modality(data, stored)
    center, width = _first(data.get("WindowCenter")), _first(data.get("WindowWidth"))
    if data.get("VOILUTSequence"):
        table = data.VOILUTSequence[0]
        grey = _look_up(values, table) / (2.0 ** table.LUTDescriptor[2] - 1)
    elif center is not None and width is not None:
        grey = _window(values, center=center, width=width, function=data.get("VOILUTFunction") or "LINEAR")
    else:
        ends = _ends(data) if data.BitsStored <= 8 else values[shown]
        grey = (values - ends.min()) / max(np.ptp(ends), 1e-9)
    if data.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    return np.where(shown, np.rint(255 * grey.clip(0, 1)), 0).astype(np.uint8)


def _modality(data: Dataset, stored: np.ndarray) -> np.ndarray:
    if data.get("ModalityLUTSequence"):
        return _look_up(stored, data.ModalityLUTSequence[0])
    slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
    return stored * float(1 if slope is None else slope) + float(intercept or 0)


def _window(values: np.ndarray, *, center: float, width: float, function: str) -> np.ndarray:
    """Map values through a window, to [0, 1] and beyond (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if width < (1 if function == "LINEAR" else np.finfo(float).tiny):
        raise ValueError(f"window width {width:g} is too small for {function}")
    # LINEAR (x - (c - 1/2)) / (w - 1) + 1/2; LINEAR_EXACT (x - c) / w + 1/2; SIGMOID 1 / (1 + exp(-4 (x - c) / w))
    if function == "LINEAR":
        # Width 1 is a step at c - 1/2.
        return (values - (center - 0.5)) / max(width - 1, 1e-9) + 0.5
    if function == "LINEAR_EXACT":
        return (values - center) / width + 0.5
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    raise ValueError(f"VOI LUT function {function!r}, only LINEAR, LINEAR_EXACT and SIGMOID are known")


def _look_up(values: np.ndarray, table: Dataset) -> np.ndarray:
    """Map values through a lookup table; those outside take its first or last entry (PS3.3 C.11.1.1)."""
    count, first, _ = table.LUTDescriptor
    count = count or 2**16
    entries = table.LUTData
    if isinstance(entries, bytes):
        entries = np.frombuffer(entries, dtype="<u2" if len(entries) >= 2 * count else np.uint8)
    return np.asarray(entries)[(np.rint(values).astype(np.int64) - first).clip(0, count - 1)]


def _ends(data: Dataset) -> np.ndarray:
    """The smallest and largest value that the stored bits can hold, after the modality step."""
    low = -(2 ** (data.BitsStored - 1)) if data.PixelRepresentation else 0
    return _modality(data, np.array([low, low + 2**data.BitsStored - 1]))


def _padding(data: Dataset, stored: np.ndarray) -> np.ndarray:
    """Which pixels only fill the rectangle (PS3.3 C.7.5.1.1.2): one value, or all up to a limit."""
    value = data.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    limit = data.get("PixelPaddingRangeLimit", value)
    return (stored >= min(value, limit)) & (stored <= max(value, limit))


def _first(value: Any) -> float | None:
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    return None if value in (None, "") else float(value)

"""DICOM radiographs as grey levels, the way a viewer would show them first."""

import logging
import struct
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.multival import MultiValue
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from tmv_lib.data.levels import MOST_PIXELS, depth

logging.getLogger("pydicom").setLevel(
    logging.CRITICAL
)  # what it logs of a broken file, tracebacks too, is in our error

HEADER = {
    "patient_id": "PatientID",
    "manufacturer": "Manufacturer",
    "view_position": "ViewPosition",
    "study_date": "StudyDate",
}
SUFFIXES = (".dcm", ".dicom")
NEEDED = (
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PhotometricInterpretation",
)
NO_PICTURE = ("SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "REG", "PR", "SR")
DEFLATED, DEFLATED_WITHIN = DeflatedExplicitVRLittleEndian.encode(), 2048  # the file meta group comes first
SQUARE = 0.02  # sides of a pixel may differ by this share
# Of JPEG (C0 to CF, less C4, C8 and CC, which are other tables) and of JPEG-LS.
FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def is_dicom(path: str | Path) -> bool:
    """Whether the file says that it is DICOM, by its content ("DICM" after 128 bytes) or by its suffix."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM" or Path(path).suffix.lower() in SUFFIXES


def read_dicom(path: str | Path | BinaryIO) -> tuple[np.ndarray, str]:
    """Read a single-frame grey image as uint8 (height, width), 0 black and 255 white, with a remark or "".

    The chain of DICOM PS3.3 C.11: modality (lookup table, or rescale slope and intercept), then values of
    interest (the first lookup table, else the first window). Where the file names neither, 8-bit images keep
    their range and deeper ones go from their smallest to their largest value. MONOCHROME1 is inverted.
    Padding is black and takes no part in the range. Raises ValueError naming the file where it cannot be
    read, where what the header says is not honoured here, and where it holds several frames, colour or no image.
    """
    # Files come from anywhere, and pydicom and its decoders answer a broken one with errors of every kind.
    try:
        content = Path(path).read_bytes() if isinstance(path, (str, Path)) else path.read()
        if DEFLATED in content[:DEFLATED_WITHIN]:
            raise ValueError("deflated: its size is known only when it is unpacked, and it is not read")
        data = pydicom.dcmread(BytesIO(content), force=True)
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
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER.values()), force=True)
        found = {name: str(data.get(keyword) or "").strip() for name, keyword in HEADER.items()}
    except Exception as error:
        raise ValueError(f"{path}: not a readable DICOM file ({error})") from error
    return {name: value for name, value in found.items() if value}


def _check(data: Dataset) -> None:
    """Refuse what is no single grey image, what is too large, and what is laid out as nothing here honours."""
    modality = str(data.get("Modality", "not given"))
    if "PixelData" not in data:
        floating = "FloatPixelData" in data or "DoubleFloatPixelData" in data
        raise ValueError(f"{'floating-point' if floating else 'no'} pixel data, modality {modality}")
    if modality in NO_PICTURE:
        raise ValueError(f"modality {modality}, whose values are no picture")
    if lacking := [name for name in NEEDED if data.get(name) is None]:
        raise ValueError(f"{lacking[0]} is missing")
    rows, columns = int(data.Rows), int(data.Columns)
    if not 0 < rows * columns <= MOST_PIXELS:
        raise ValueError(f"{columns} x {rows} pixels, 1 to {MOST_PIXELS:,} are read")
    frames, samples = int(data.get("NumberOfFrames") or 1), int(data.get("SamplesPerPixel") or 1)
    if frames != 1:
        raise ValueError(f"{frames} frames, only single images are read")
    if data.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2") or samples != 1:
        found = f"{data.PhotometricInterpretation} of {samples} samples per pixel"
        raise ValueError(f"{found}, only MONOCHROME1 and MONOCHROME2 of one are read")
    if data.PhotometricInterpretation == "MONOCHROME2" and data.get("PresentationLUTShape") == "INVERSE":
        raise ValueError("MONOCHROME2 with an inverse presentation LUT: one says white, the other black")
    if data.HighBit != data.BitsStored - 1 or data.BitsStored > data.BitsAllocated:
        layout = f"{data.BitsStored} of {data.BitsAllocated} bits, the highest at {data.HighBit}"
        raise ValueError(f"{layout}: only the lowest bits of a pixel are read")
    if "SharedFunctionalGroupsSequence" in data:
        raise ValueError("window and rescale inside functional groups, which are not read")
    ratio = [float(side) for side in data.get("PixelAspectRatio") or data.get("PixelSpacing") or (1, 1)]
    if len(ratio) != 2 or not min(ratio) > 0 or abs(ratio[0] / ratio[1] - 1) > SQUARE:
        raise ValueError(f"pixels of {ratio[0]:g} by {ratio[-1]:g}, only square ones are read")
    _check_pixels(data, rows * columns)


def _check_pixels(data: Dataset, pixels: int) -> None:
    """Refuse pixel data of another size or depth than the header says, before anything of it is decoded."""
    if not data.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian).is_encapsulated:
        needed = pixels * data.BitsAllocated // 8
        if not needed <= len(data.PixelData) <= needed + 1:  # an odd number of bytes is filled up
            raise ValueError(f"{len(data.PixelData)} bytes of pixel data, the header asks for {needed}")
        order = ">" if data.file_meta.get("TransferSyntaxUID") == ExplicitVRBigEndian else "<"
        kind = f"{order}{'i' if data.PixelRepresentation else 'u'}{data.BitsAllocated // 8}"
        raw = np.frombuffer(data.PixelData[:needed], dtype=kind)
        beyond = (raw != _within(data, raw)) & (raw != data.get("PixelPaddingValue"))
        if beyond.any():
            low, high = _range(data)
            raise ValueError(f"value {raw[beyond][0]}, the {data.BitsStored} bits stored hold {low} to {high}")
        return
    frame = next(generate_frames(data.PixelData, number_of_frames=1))
    if (coded := coded_size(frame)) is None:
        return
    width, height, bits = coded
    if (height, width) != (data.Rows, data.Columns) or bits < data.BitsStored:
        said = f"{data.Columns} x {data.Rows} pixels of {data.BitsStored} bits"
        raise ValueError(f"compressed are {width} x {height} pixels of {bits} bits, the header says {said}")


def coded_size(frame: bytes) -> tuple[int, int, int] | None:
    """Width, height and bits that a JPEG, JPEG-LS or JPEG 2000 codestream says; None where it is no such stream.

    By its frame header (ISO/IEC 10918-1 B.2.2: bits, height, width) or its size marker (15444-1 A.5.1).
    """
    if (start := frame.find(b"\xff\x4f\xff\x51")) >= 0:
        x1, y1, x0, y0 = struct.unpack(">IIII", frame[start + 8 : start + 24])
        return x1 - x0, y1 - y0, (frame[start + 42] & 0x7F) + 1
    place = 2
    while frame[:2] == b"\xff\xd8" and place + 9 <= len(frame) and frame[place] == 0xFF:
        marker, length = frame[place + 1], int.from_bytes(frame[place + 2 : place + 4], "big")
        if marker in FRAME_HEADERS:
            bits, height, width = struct.unpack(">BHH", frame[place + 4 : place + 9])
            return width, height, bits
        place += 2 + length
    return None


def _display(data: Dataset, stored: np.ndarray) -> tuple[np.ndarray, str]:
    shown = ~_padding(data, stored)
    if not shown.any():
        raise ValueError("every pixel is padding")
    values = _modality(data, stored)
    center, width = _first(data.get("WindowCenter")), _first(data.get("WindowWidth"))
    remark = ""
    if data.get("VOILUTSequence"):
        grey, remark = _by_table(values, data.VOILUTSequence[0])
    elif center is not None and width is not None:
        grey = _window(values, center=center, width=width, function=data.get("VOILUTFunction") or "LINEAR")
    else:
        ends = _modality(data, np.array(_range(data))) if data.BitsStored <= 8 else values[shown]
        grey = (values - ends.min()) / max(np.ptp(ends), 1e-9)
    if data.PhotometricInterpretation == "MONOCHROME1":
        grey = 1 - grey
    levels = np.where(shown, np.rint(255 * grey.clip(0, 1)), 0).astype(np.uint8)
    if np.ptp(stored[shown]) and not np.ptp(levels[shown]):
        raise ValueError("its window or table leaves one grey level of an image that has more")
    return levels, remark


def _by_table(values: np.ndarray, table: Dataset) -> tuple[np.ndarray, str]:
    """Values in [0, 1] through a lookup table of values of interest, by the bits that its entries use."""
    entries, said = _entries(table), int(table.LUTDescriptor[2])
    bits = depth(int(entries.max()))
    if bits > said and int(entries.max()) >= 2**said:
        raise ValueError(f"a lookup table of {said} bits whose entries reach {entries.max()}")
    bits = min(bits, said)
    remark = "" if bits == said else f"its lookup table says {said} bits and reaches {entries.max()}: read as {bits}"
    return _look_up(values, table) / (2.0**bits - 1), remark


def _modality(data: Dataset, stored: np.ndarray) -> np.ndarray:
    if data.get("ModalityLUTSequence"):
        return _look_up(stored, data.ModalityLUTSequence[0])
    slope, intercept = (data.get(name) for name in ("RescaleSlope", "RescaleIntercept"))
    by, plus = float(1 if slope is None else slope), float(intercept or 0)
    if by == 0 or not np.isfinite([by, plus]).all():
        raise ValueError(f"rescale slope {by:g} and intercept {plus:g}")
    return stored * by + plus


def _window(values: np.ndarray, *, center: float, width: float, function: str) -> np.ndarray:
    """Map values through a window, to [0, 1] and beyond (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    if not np.isfinite([center, width]).all() or width < (1 if function == "LINEAR" else np.finfo(float).tiny):
        raise ValueError(f"window of centre {center:g} and width {width:g} cannot be one for {function}")
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
    entries, first = _entries(table), int(table.LUTDescriptor[1])
    return entries[(np.rint(values).astype(np.int64) - first).clip(0, entries.size - 1)]


def _entries(table: Dataset) -> np.ndarray:
    """The entries of a lookup table, as many as its descriptor says."""
    count, entries = int(table.LUTDescriptor[0]) or 2**16, table.LUTData
    if isinstance(entries, bytes):
        entries = np.frombuffer(entries, dtype="<u2" if len(entries) >= 2 * count else np.uint8)
    entries = np.atleast_1d(np.asarray(entries))
    if entries.size < count:
        raise ValueError(f"a lookup table of {entries.size} entries, its descriptor says {count}")
    return entries[:count]


def _range(data: Dataset) -> tuple[int, int]:
    """The smallest and largest value that the stored bits can hold."""
    low = -(2 ** (data.BitsStored - 1)) if data.PixelRepresentation else 0
    return low, low + 2**data.BitsStored - 1


def _within(data: Dataset, values: np.ndarray) -> np.ndarray:
    """What the stored bits keep of values, as the decoders cut off the others."""
    low, _ = _range(data)
    return (values.astype(np.int64) - low) % 2**data.BitsStored + low


def _padding(data: Dataset, stored: np.ndarray) -> np.ndarray:
    """Which pixels only fill the rectangle (PS3.3 C.7.5.1.1.2): one value, or all up to a limit."""
    value = data.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    value, limit = (int(_within(data, np.array(end))) for end in (value, data.get("PixelPaddingRangeLimit", value)))
    return (stored >= min(value, limit)) & (stored <= max(value, limit))


def _first(value: Any) -> float | None:
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    return None if value in (None, "") else float(value)

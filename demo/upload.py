"""An uploaded image: read with care in memory, refused where it is unlike the training images, and kept nowhere."""

from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import pydicom
from PIL import Image

from demo.answers import DEFERRED, answer, next_step, similar
from demo.cases import Collection, chance, this_unsure
from demo.disk import Disk, figure
from demo.maps import verdict
from demo.page import Overlay, Section
from tmv_lib.data.dicom import DEFLATED, DEFLATED_WITHIN
from tmv_lib.data.images import Channels, read_image, square
from tmv_lib.data.levels import MOST_PIXELS

MOST_BYTES = 20 * 2**20
LEAST_SIDE = 28
REFUSED = "Refused: this image is unlike the images that the networks were trained on. They give no answer on it."
KINDS = ("png", "jpg", "jpeg", "dcm", "dicom")


def channels(disk: Disk) -> Channels:
    """The channels that the networks see."""
    return figure(disk.read("params.yaml"), "prepare.channels") or "grey"


def read(data: bytes, *, channels: Channels = "grey") -> np.ndarray:
    """The levels of a PNG, JPEG or DICOM file, uint8 (height, width), or (height, width, 3), whatever its name says.

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
        return read_image(data, name="upload", channels=channels).levels
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
    if DEFLATED in data[:DEFLATED_WITHIN]:  # reading its header alone would unpack all of it
        raise ValueError("This DICOM file is deflated, which is not read.")
    # Files come from anywhere, and pydicom answers a broken one with errors of every kind.
    try:
        header = pydicom.dcmread(BytesIO(data), stop_before_pixels=True)
        height, width = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    except Exception as error:
        raise ValueError("This DICOM file cannot be read.") from error
    if not height * width:
        raise ValueError("This DICOM file holds no image.")
    return height, width


def load(disk: Disk) -> Any:
    """The members and the policy as they lie on disk. Raises ValueError naming the first file that is missing."""
    # The only place of the viewer that needs torch, which takes seconds to import.
    from tmv_lib.prediction import system as prediction

    return prediction.load(disk.root)


def judge(system: Any, cases: Collection, image: np.ndarray) -> tuple[np.ndarray, list[Section], list[Overlay]]:
    """Ask the system about an image as `read` gives it; it refuses what is unlike the images it was trained on.

    Returns the pixels (size, size) as it sees them, what it says, and every member's map where it gives an answer.
    """
    from tmv_lib.prediction import system as prediction

    pixels = square(image, size=system.size, how=system.how)
    said = prediction.score(system, pixels[None]).cases.iloc[0]
    title = "The system gives no answer"
    if said["out_of_distribution"]:
        as_odd = f"Of the images of the validation split, {said['oddity']:.1%} or fewer are as odd."
        return pixels, [Section(title, [f"**{REFUSED}**", as_odd, next_step(cases, said)])], []
    if said["deferred"]:
        lines = [f"**{DEFERRED}**", f"The reason: {said['reason']}.", next_step(cases, said)]
        return pixels, [Section(title, lines)], []
    y_prob, decision, overlays = float(said["y_prob"]), int(said["decision"]), []
    for name, network in system.networks.items():
        own = network.explain(pixels[None]).maps[0] * (1 if decision == 1 else -1)
        overlays.append(Overlay(name, cases.names.called(decision), own, None, *verdict(cases.disk, name)))
    rows = [(name, chance(float(said[f"y_prob_{name}"]))) for name in system.networks]
    doubt = this_unsure(cases.table.assign(doubt=1 - cases.table["certainty"]), "doubt", 1 - float(said["certainty"]))
    lines = [
        f"{answer(cases, y_prob, decision)} Nobody has checked it.",
        similar(cases, y_prob),
        f"Certainty {said['certainty']:.2f} of 1: {doubt}",
        next_step(cases, said),
    ]
    table = pd.DataFrame(rows, columns=["network", "calibrated"])
    return pixels, [Section("The system's answer", lines, table=table)], overlays

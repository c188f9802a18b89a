"""What the film in the browser is given (film.js draws it): the images of one patient, and the map of an answer."""

from pathlib import Path
from typing import Any

import numpy as np

from demo import pictures
from demo.cases import Collection, image, image_alt, others
from demo.page import Overlay, source

SCRIPT, STYLE = (Path(__file__).with_name(f"film.{ending}").read_text(encoding="utf-8") for ending in ("js", "css"))


def of_case(cases: Collection, number: int, overlay: Overlay | None = None) -> dict[str, Any]:
    """The film of a case: its image, the others of the same patient, and the map of its answer once there is one."""
    shown = [(image(cases, number), image_alt(cases, number))]
    for place, other in enumerate(others(cases, number), start=1):
        alt = f"Another image of the patient of case {number}, {place}. Not for clinical use."
        shown.append((image(cases, other), alt))
    return of_images(f"case {number}", shown, overlay)


def of_images(key: str, images: list[tuple[np.ndarray, str]], overlay: Overlay | None = None) -> dict[str, Any]:
    """The film of uint8 images (side, side[, 3]) with what is said of each; another key is looked at from the start."""
    layers = [{"src": source(pictures.png(pixels)), "alt": alt} for pixels, alt in images]
    found: dict[str, Any] = {"key": key, "images": layers, "map": None}
    if overlay and overlay.own is not None:
        colours = pictures.png(pictures.coloured(overlay.own, side=pictures.THUMBNAIL))
        found["map"] = {"src": source(colours), "alt": overlay.alt, "on": overlay.usable}
    return found

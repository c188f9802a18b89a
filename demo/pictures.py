"""Images and maps as PNG bytes. Maps have the colours that the galleries of the stages draw them in."""

from io import BytesIO

import numpy as np
from matplotlib import colormaps
from PIL import Image

from tmv_lib.pipeline.grey import luminance
from tmv_lib.pipeline.pictures import ATTRIBUTION

COLOURS = (colormaps[ATTRIBUTION](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
THUMBNAIL = 144  # pixels of a picture that is drawn here; films are drawn in the browser
OPACITY = 0.65  # of maps that nobody turns
MAP_NOTE = "A map shows where the model looked, not where disease is."


def png(pixels: np.ndarray) -> bytes:
    """The PNG of uint8 pixels (h, w), (h, w, 3) or (h, w, 4)."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def view(image: np.ndarray, *, side: int = THUMBNAIL) -> np.ndarray:
    """A uint8 image (h, w[, 3]) brought to (side, side)."""
    return np.asarray(Image.fromarray(np.asarray(image)).resize((side, side), Image.Resampling.BICUBIC))


def coloured(attribution: np.ndarray, *, scale: float | None = None, side: int = THUMBNAIL) -> np.ndarray:
    """The positive part of a map (any grid) as uint8 RGBA (side, side, 4): colour and opacity are value / scale.

    scale: the map's own maximum where it is left out.
    """
    scale = scale_of(attribution) if scale is None else scale
    share = np.clip(
        np.asarray(attribution, dtype=np.float32) / scale if scale > 0 else np.zeros(attribution.shape), 0, 1
    )
    smooth = np.asarray(Image.fromarray(share.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR))
    alpha = (255 * np.clip(1.5 * smooth, 0, 1)).astype(np.uint8)
    return np.dstack([COLOURS[(255 * smooth).round().astype(np.uint8)], alpha])


def over(pixels: np.ndarray, colours: np.ndarray, *, opacity: float) -> np.ndarray:
    """Pixels (side, side[, 3]) under colours (side, side, 4), whose own opacity is multiplied by this one in [0, 1].

    Pixels in colour are shown grey: a hue under a map would be read as a part of it.
    """
    pixels = luminance(pixels[None])[0]
    alpha = colours[..., 3:].astype(np.float32) / 255 * opacity
    return (pixels[..., None] * (1 - alpha) + colours[..., :3] * alpha).round().astype(np.uint8)


def scale_of(*maps: np.ndarray) -> float:
    """The largest value of these maps, at least 0: what their common scale ends at."""
    return max(0.0, *(float(np.max(each)) for each in maps))


def where(attribution: np.ndarray) -> str:
    """In words, where a map (h, w) is strongest, as the image is seen: "in the upper left"."""
    if scale_of(attribution) <= 0:
        return "nowhere: the map is empty"
    row, column = np.unravel_index(int(np.argmax(attribution)), attribution.shape)
    height, width = attribution.shape
    vertical = ("upper", "middle", "lower")[min(2, int(3 * (row + 0.5) / height))]
    horizontal = ("left", "centre", "right")[min(2, int(3 * (column + 0.5) / width))]
    if (vertical, horizontal) == ("middle", "centre"):
        return "in the centre of the image"
    edge = row in (0, height - 1) or column in (0, width - 1)
    return f"in the {vertical} {horizontal} of the image" + (", at its border" if edge else "")

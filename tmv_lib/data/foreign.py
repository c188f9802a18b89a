"""Images that are not what the network was trained for, made from those that are: does anything notice?"""

import numpy as np
import pandas as pd

NUMBER = 40  # validation images that are spoiled in each way


def foreign_images(images: np.ndarray, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Spoiled versions of square uint8 images (n, side, side), or in colour (n, side, side, 3), one per image and kind.

    noise: the image's own pixels in a random order, so that no histogram gives it away. inverted: white for black.
    rotated_90, rotated_180: lying on its side, upside down. mirrored: left for right. uniform: one level everywhere,
    from black for the first image to white for the last. gradient: from its darkest to its brightest level, downwards,
    upwards, or to either side. In colour also channels_swapped: red for blue, as software does that reads BGR for RGB.

    Raises ValueError for images that are not square, or none.

    >>> foreign_images(np.array([[[0, 1], [2, 3]]], np.uint8), rng=np.random.default_rng(0))["rotated_90"].tolist()
    [[[1, 3], [0, 2]]]
    """
    if images.ndim not in (3, 4) or images.shape[1] != images.shape[2] or not len(images):
        raise ValueError(f"images must be (n, side, side[, 3]), at least one, found shape {images.shape}")
    n, side = images.shape[:2]
    ramps = np.linspace(images.min(axis=(1, 2)), images.max(axis=(1, 2)), side, axis=1)[:, :, None].repeat(side, axis=2)
    levels = np.linspace(0, 255, n).reshape(n, *[1] * (images.ndim - 1))
    spoiled = {
        "noise": _shuffled(images, rng),
        "inverted": 255 - images,
        "rotated_90": np.rot90(images, axes=(1, 2)),
        "rotated_180": np.rot90(images, 2, axes=(1, 2)),
        "mirrored": images[:, :, ::-1],
        "uniform": np.broadcast_to(levels, images.shape).astype(np.uint8),
        "gradient": np.stack([np.rot90(ramp, k % 4) for k, ramp in enumerate(ramps)]).astype(np.uint8),
    }
    return spoiled | ({"channels_swapped": images[..., ::-1]} if images.ndim == 4 else {})


def _shuffled(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image's pixels in a random order of its own, the channels of a pixel together."""
    if images.ndim == 3:
        return rng.permuted(images.reshape(len(images), -1), axis=1).reshape(images.shape)
    pixels = images.reshape(len(images), -1, images.shape[3])
    order = rng.permuted(np.tile(np.arange(pixels.shape[1]), (len(images), 1)), axis=1)
    return np.take_along_axis(pixels, order[..., None], axis=1).reshape(images.shape)


def spoiled_validation(cases: pd.DataFrame, images: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """Validation images spoiled in each way, and a row per image: the `image_id` that it was made from, and the `kind`.

    Not test images: these are for the last figure, and what is made from them would be looked at before.
    """
    rng = np.random.default_rng(0)
    val = np.flatnonzero(cases["split"] == "val")
    chosen = np.sort(rng.choice(val, min(NUMBER, len(val)), replace=False))
    spoiled = foreign_images(images[chosen], rng=rng)
    rows = [pd.DataFrame({"image_id": cases["image_id"].to_numpy()[chosen], "kind": kind}) for kind in spoiled]
    return pd.concat(rows, ignore_index=True), np.concatenate(list(spoiled.values()))

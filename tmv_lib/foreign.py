"""Images that are not what the network was trained for, made from those that are: does anything notice?"""

import numpy as np


def foreign_images(images: np.ndarray, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Three spoiled versions of square uint8 images (n, side, side), by kind.

    noise: the image's own pixels in a random order, so that no histogram gives it away. inverted: white for black.
    rotated: lying on its side, by 90 degrees. Raises ValueError for images that are not square.

    >>> foreign_images(np.array([[[0, 1], [2, 3]]], np.uint8), rng=np.random.default_rng(0))["rotated"].tolist()
    [[[1, 3], [0, 2]]]
    """
    if images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images must be (n, side, side), found shape {images.shape}")
    noise = rng.permuted(images.reshape(len(images), -1), axis=1).reshape(images.shape)
    return {"noise": noise, "inverted": 255 - images, "rotated": np.rot90(images, axes=(1, 2))}

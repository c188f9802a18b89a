"""Grey levels of colour images, for whatever looks at light and dark alone."""

import numpy as np


def luminance(images: np.ndarray) -> np.ndarray:
    """Luminance (ITU-R 601), uint8 (n, h, w), of uint8 colour images (n, h, w, 3); grey ones (n, h, w) as they are.

    >>> luminance(np.full((1, 1, 1, 3), [255, 0, 0], np.uint8)).item()
    76
    """
    if images.ndim == 3:
        return images
    weighed = images.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)  # of 2^16, as Pillow has them
    return ((weighed + 2**15) >> 16).astype(np.uint8)

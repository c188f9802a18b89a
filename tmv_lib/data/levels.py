"""What grey levels say of themselves: how many bits are in use, and whether anything is left to see."""

import numpy as np

MOST_PIXELS = 50_000_000  # of one image: the largest radiographs have 30 million
DEPTHS = (8, 10, 12, 14, 16)  # bits of detectors and screens
FEW = 16  # grey levels: with fewer an image that varies shows next to nothing


def depth(highest: int) -> int:
    """The smallest of 8, 10, 12, 14 and 16 bits that holds this level, at least 0.

    >>> depth(255), depth(4095), depth(40_000)
    (8, 12, 16)
    """
    return next(bits for bits in DEPTHS if highest < 2**bits)


def remark_on(levels: np.ndarray) -> str:
    """What to say of an image uint8 (height, width) of next to no grey levels that is not one level all over; or ""."""
    some = levels[:: max(1, len(levels) // 64)]  # where these show enough, all do
    n = FEW if np.unique(some).size >= FEW else np.unique(levels).size
    return f"it shows {n} grey levels only" if 1 < n < FEW else ""

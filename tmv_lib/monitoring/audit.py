"""Who is read, and with which probability: without a lot, those with a label are those with a problem."""

import hashlib

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def drawn(patients: pd.Series, *, rate: float, salt: str) -> NDArray[np.bool_]:
    """Whether the lot falls on each patient (n,) by name: a share `rate` in (0, 1], the same at every look.

    The lot is the SHA-256 of salt and patient, read as a number in [0, 1). Who keeps the salt to himself draws a lot
    that nobody can foresee.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate must lie in (0, 1], found {rate}")
    if rate == 1:
        return np.ones(len(patients), dtype=bool)
    prefix = f"{salt}\n".encode()
    lots = b"".join(hashlib.sha256(prefix + name.encode()).digest()[:8] for name in patients)
    return np.frombuffer(lots, dtype=">u8") < np.uint64(rate * 2**64)

"""Which images are unlike the training images: odd to the eye of no network, or far from the training features.

Several detectors give each image a number, larger = odder. None of them needs a limit of its own: one conformal
p-value says how many usual images are as odd. Networks alone are not enough. Features that never had to tell up from
down put a radiograph lying on its side among the others, so three detectors look at the pixels and know no network.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from scipy.special import logsumexp
from sklearn.covariance import ledoit_wolf

from tmv_lib.pipeline.files import Images, whole
from tmv_lib.pipeline.grey import luminance
from tmv_lib.statistics.arrays import FloatArray

REFUSED = 0.05  # share of usual images, at most and in expectation, that is called out of distribution
PIXELS = ("layout", "texture", "orientation")  # the detectors that look at the pixels
_GRID = 16  # cells a side of the coarse image
_RIDGE = 0.01  # of the mean variance, added to the covariance of the coarse image where orientations are told apart
_AT_ONCE = 256  # images in memory as float


class PixelDetectors(NamedTuple):
    """What is usual among the training images, in numbers.

    layout_mean, layout_whitener: (256,) and (256, 256), of the coarse image. texture_mean, texture_whitener: (t,) and
    (t, t), of the logarithms of its power. A vector x is |(x - mean) whitener| standard deviations from the mean.
    orientation_weight, orientation_bias: (256, 8) and (8,), scores of the eight ways in which a coarse image may lie,
    the training images' own first.
    """

    layout_mean: FloatArray
    layout_whitener: FloatArray
    texture_mean: FloatArray
    texture_whitener: FloatArray
    orientation_weight: FloatArray
    orientation_bias: FloatArray


def fit_pixel_detectors(images: Images) -> PixelDetectors:
    """Learn what is usual from training images, uint8 (n, side, side), side at least 16; no label is needed.

    layout: the image averaged over 16 x 16 cells, less its mean and divided by its length, so that exposure and
        contrast play no part; one Gaussian with a shrunken covariance (Ledoit & Wolf 2004).
    texture: the logarithm of the image's power by octave of spatial frequency and by direction (four of 45 degrees);
        one Gaussian.
    orientation: the coarse image against the same images turned by 90, 180, 270 degrees and mirrored (eight ways to
        lie): linear discriminant analysis, whose classes share a covariance.

    Raises ValueError for another shape or type, fewer than two images, or images that are all alike.
    """
    if len(images) < 2:
        raise ValueError(f"images must be at least 2, found {len(images)}")
    coarse, texture = _described(images)
    layout = _gaussian(coarse.reshape(len(coarse), -1), what="layout")
    return PixelDetectors(*layout, *_gaussian(texture, what="texture"), *_tell_orientations(coarse))


def pixel_oddity(images: Images, fitted: PixelDetectors) -> FloatArray:
    """How odd each image is to each detector of PIXELS, (n, 3), larger = odder.

    It takes half a millisecond per image of 112 pixels a side.

    images: uint8 (n, side, side) of the side that was fitted. layout and texture are standard deviations from the mean
    training image; orientation is the log odds that the image lies in any of the seven ways that training images do
    not lie. Raises ValueError for another shape or type.
    """
    coarse, texture = _described(images)
    flat = coarse.reshape(len(coarse), _GRID * _GRID)
    if texture.shape[1] != len(fitted.texture_mean):
        raise ValueError(f"images must have the side that was fitted, found {images.shape[1]} pixels a side")
    layout = np.linalg.norm((flat - fitted.layout_mean) @ fitted.layout_whitener, axis=1)
    power = np.linalg.norm((texture - fitted.texture_mean) @ fitted.texture_whitener, axis=1)
    scores = flat @ fitted.orientation_weight + fitted.orientation_bias
    return np.stack([layout, power, logsumexp(scores[:, 1:], axis=1) - scores[:, 0]], axis=1)


def joint_p_value(oddity: ArrayLike, usual: ArrayLike) -> FloatArray:
    """How many usual images are as odd as each of these, by whichever detector finds them oddest: conformal p-values.

    oddity: (k, m), k images and m detectors, larger = odder. usual: (n, m), the same of usual images that the detectors
    were not fitted on (the validation images).

    An image is as odd as the fewest images that any detector finds as odd; of two that are equal in that, the one
    farther from the median of some detector, in interquartile ranges, is odder. Its p-value is the share, among the
    usual images and itself, that is as odd or odder. With x_0 the image and x_1 ... x_n the usual ones,

        r_i = min_j #{k in 0..n: x_kj >= x_ij},   z_i = max(0, max_j (x_ij - median_j) / iqr_j),
        s_i = r_i + 1 / (1 + z_i),                p = #{i in 0..n: s_i <= s_0} / (n + 1).

    Where the image is exchangeable with the usual ones, P(p <= alpha) <= alpha for every alpha, whatever the detectors
    and however they depend on each other: s treats all n + 1 alike (Bates, Candes, Lei, Romano & Sesia 2023, arXiv
    2104.08279, have it for one detector). It is never above m times the smallest p-value of a single detector
    (Bonferroni), and reaches 1 / (n + 1) for an image that one detector finds far odder than all usual ones, however
    many others there are. Images of one patient resemble each other: with several images per patient the level holds
    about, and with few patients not: of ten patients the oddest one's images are a tenth.

    Returns (k,) in (0, 1], small = odd. Raises ValueError if shapes disagree, a value is not finite, or n is 0.

    >>> joint_p_value([[9.0, 0.0], [1.5, 1.5]], [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]).tolist()
    [0.25, 0.75]
    """
    new, known = _checked(oddity, usual)
    rank = _as_odd(known, known)
    found = np.empty(len(new))
    for place, (image, own) in enumerate(zip(new, 1 + _as_odd(new, known), strict=True)):
        fewest = np.append((rank + (image >= known)).min(axis=1), own.min())
        score = _score(fewest, np.vstack([known, image]))
        found[place] = (score <= score[-1]).mean()
    return found


def usual_p_value(usual: ArrayLike) -> FloatArray:
    """`joint_p_value` of each of the usual images, (n, m), among the others: (n,) in (0, 1].

    At most a share alpha of them, whatever they are, has a p-value of alpha or less.

    >>> usual_p_value([[1.0], [2.0], [3.0], [4.0]]).tolist()
    [1.0, 0.75, 0.5, 0.25]
    """
    known, _ = _checked(usual, usual)
    score = _score(_as_odd(known, known).min(axis=1), known)
    return np.asarray((score[None] <= score[:, None]).mean(axis=1))


def alone(oddity: ArrayLike, usual: ArrayLike) -> FloatArray:
    """Conformal p-value of each detector by itself, (k, m): (1 + #{usual >= value}) / (1 + n). As `joint_p_value`."""
    new, known = _checked(oddity, usual)
    return (1 + _as_odd(new, known)) / (1 + len(known))


def require(n_usual: int) -> None:
    """Raise ValueError where too few usual ones refuse anything: 1 / (n + 1) > REFUSED."""
    fewest = round(1 / REFUSED) - 1
    if n_usual < fewest:
        raise ValueError(
            f"{n_usual} validation images, beside which a new one can at best be the oddest of {n_usual + 1}; to call"
            f" an image unlike the training images at {REFUSED:.0%} takes at least {fewest}"
        )


def write_pixel_detectors(path: str | Path, fitted: PixelDetectors) -> None:
    """Write them as one .npz of plain arrays."""
    with whole(path) as temporary:
        np.savez(temporary, **fitted._asdict())


def read_pixel_detectors(path: str | Path) -> PixelDetectors:
    """Read what `write_pixel_detectors` wrote. Raises ValueError naming the file where it is missing or another."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return PixelDetectors(**{name: stored[name] for name in PixelDetectors._fields})
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; `make repro` fits what is usual") from None
    except Exception as error:  # a damaged archive raises errors of many kinds
        raise ValueError(
            f"{path}: no pixel detectors of this version ({error}); `make repro` fits them anew"
        ) from error


def _described(images: Images) -> tuple[FloatArray, FloatArray]:
    """Coarse images (n, 16, 16) without mean and scale, and the logarithms of their power (n, octaves x 4).

    Of colour images the luminance counts.
    """
    side = images.shape[2] if images.ndim in (3, 4) else 0
    if images.ndim not in (3, 4) or images.dtype != np.uint8 or images.shape[1] != side or side < _GRID:
        raise ValueError(
            f"images must be uint8 (n, side, side) with a side of at least {_GRID}, found {images.dtype} {images.shape}"
        )
    average, window, bands = _averaging(side), np.hanning(side), _bands(side)
    coarse = np.empty((len(images), _GRID, _GRID))
    texture = np.empty((len(images), bands.shape[1]))
    for start in range(0, len(images), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        levels = luminance(images[part]).astype(float)
        cells = average @ levels @ average.T
        cells -= cells.mean(axis=(1, 2), keepdims=True)
        length = np.linalg.norm(cells, axis=(1, 2), keepdims=True)
        coarse[part] = np.divide(cells, length, out=np.zeros_like(cells), where=length > 1e-6)  # a flat image has none
        levels -= levels.mean(axis=(1, 2), keepdims=True)
        power = np.abs(np.fft.rfft2(levels * np.outer(window, window))) ** 2
        texture[part] = np.log1p(power.reshape(len(levels), -1) @ bands)
    return coarse, texture


def _averaging(side: int) -> FloatArray:
    """(16, side): what share of each pixel lies in each cell, rows that sum to 1."""
    edges, pixel = np.linspace(0, side, _GRID + 1), np.arange(side)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return np.clip(overlap, 0, None) * _GRID / side


def _bands(side: int) -> FloatArray:
    """(side x (side // 2 + 1), bands): each column averages the half spectrum over an octave and a direction."""
    down, across = np.fft.fftfreq(side, 1 / side)[:, None], np.fft.rfftfreq(side, 1 / side)[None]
    cycles, last = np.hypot(down, across), int(np.log2(side / 2))
    octave = np.minimum(np.floor(np.log2(np.maximum(cycles, 1))), last).astype(int)
    direction = np.round(np.arctan2(down, across) / (np.pi / 4)).astype(int) % 4
    band = np.where(cycles > 0, 4 * octave + direction, -1).ravel()
    inside = (band[:, None] == np.arange(4 * (last + 1))).astype(float)
    return inside / np.maximum(inside.sum(axis=0), 1)


def _gaussian(rows: FloatArray, *, what: str) -> tuple[FloatArray, FloatArray]:
    """Mean (d,) and whitener (d, d) of rows (n, d), covariance shrunk towards a multiple of the identity."""
    mean = rows.mean(axis=0)
    covariance, _ = ledoit_wolf(rows - mean, assume_centered=True)
    try:
        lower = cholesky(covariance, lower=True)
    except LinAlgError:
        raise ValueError(f"images must differ from each other, found one {what} for all") from None
    return mean, solve_triangular(lower, np.eye(len(lower)), lower=True).T


def _tell_orientations(coarse: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weights (256, 8) and biases (8,) of coarse images (n, 16, 16): log densities, up to what the eight ways share."""
    flat = coarse.reshape(len(coarse), -1)
    mean, within = flat.mean(axis=0), np.cov(flat, rowvar=False, bias=True)
    # an image that lies another way has the same pixels in another order, and so have its mean and covariance
    cell = np.arange(flat.shape[1]).reshape(_GRID, _GRID)
    ways = [np.rot90(side, turns).ravel() for side in (cell, cell[:, ::-1]) for turns in range(4)]
    means = np.stack([mean[way] for way in ways])
    # S = mean over the ways of the covariance of each, and g_c(x) = mu_c' S^-1 x - mu_c' S^-1 mu_c / 2
    covariance = np.mean([within[np.ix_(way, way)] for way in ways], axis=0)
    covariance += _RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    weight = np.linalg.solve(covariance, means.T)
    return weight, -0.5 * np.einsum("cd,dc->c", means, weight)


def _score(fewest: NDArray[np.int64], oddity: FloatArray) -> FloatArray:
    """s of `joint_p_value` from r, (n,), and x, (n, m): small = odd."""
    low, median, high = np.quantile(oddity, [0.25, 0.5, 0.75], axis=0)
    spread = np.where(high > low, high - low, 1)
    return np.asarray(fewest + 1 / (1 + ((oddity - median) / spread).max(axis=1).clip(0)))


def _as_odd(oddity: FloatArray, usual: FloatArray) -> NDArray[np.int64]:
    """#{usual >= value} of each value, (k, m)."""
    columns = zip(oddity.T, np.sort(usual, axis=0).T, strict=True)
    return np.stack([len(usual) - np.searchsorted(known, values, side="left") for values, known in columns], axis=1)


def _checked(oddity: ArrayLike, usual: ArrayLike) -> tuple[FloatArray, FloatArray]:
    new, known = np.asarray(oddity, dtype=float), np.asarray(usual, dtype=float)
    if new.ndim != 2 or known.ndim != 2 or new.shape[1] != known.shape[1] or not known.size:
        raise ValueError(
            f"oddity and usual must be (images, detectors) with the same detectors, found {new.shape} and {known.shape}"
        )
    if not (np.isfinite(new).all() and np.isfinite(known).all()):
        raise ValueError("oddity and usual must be finite")
    # what varies by less is rounding, as in a network that says the same of every image
    return np.round(new, 9), np.round(known, 9)

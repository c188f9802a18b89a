"""The phantom's pixels: from a row of the plan to a frontal chest radiograph.

Attenuation is summed along the ray over analytic anatomy, then comes what a detector makes of it (`detector`).
Coordinates run from -1 to 1 over the picture, x to the viewer's right (the patient's left), y downwards; every length
is in half pictures, so that a case looks alike at any size. Each case is computed on its own, in arrays that stay in
the processor's cache: a row alone determines its bytes.
"""

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from tmv_lib.phantom.detector import detect
from tmv_lib.pipeline.files import Pile

Array = NDArray[np.floating]

# One independent stream a factor, so that changing one leaves the draws of the others alone.
ANATOMY, TEXTURE, VESSELS, POSE, FINDING, MIMIC, NOISE, MARKER = range(8)

# Mean and standard deviation over patients.
ANATOMY_RANGES = {
    "torso": (0.90, 0.025),
    "neck": (0.22, 0.015),
    "shoulder": (-0.82, 0.03),
    "build": (1.0, 0.06),
    "lung_top": (-0.75, 0.025),
    "lung_width": (0.335, 0.016),
    "lung_gap": (0.072, 0.008),
    "dome": (0.36, 0.045),
    "dome_curve": (0.15, 0.02),
    "dome_left": (0.05, 0.018),
    "heart_x": (0.11, 0.018),
    "heart_rise": (0.19, 0.02),
    "heart_size": (1.0, 0.08),
    "heart_tilt": (0.55, 0.08),
    "knob": (0.075, 0.010),
    "mediastinum": (0.118, 0.013),
    "spine": (0.078, 0.006),
    "vertebra": (0.118, 0.006),
    "vertebra_phase": (0.0, 0.3),
    "rib_gap": (0.142, 0.008),
    "rib_phase": (0.0, 0.25),
    "rib_slope": (0.30, 0.035),
    "rib_strength": (0.17, 0.025),
    "clavicle": (-0.60, 0.03),
    "clavicle_slope": (0.16, 0.04),
    "breast": (0.05, 0.05),
    "hilum_y": (-0.06, 0.025),
    "vessels": (1.0, 0.12),
    "stomach": (0.08, 0.06),
}
POSE_RANGES = {"shift_x": (0.0, 0.025), "shift_y": (0.0, 0.025), "scale": (1.0, 0.025), "turn": (0.0, 0.018)}


class Phantom(NamedTuple):
    """Images (n, size, size) uint8; finding masks and lung fields of the same shape, bool, in the plan's row order.

    The lung field includes the lung behind the heart; a finding's mask is where it reaches 0.4 of its peak.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    lungs: NDArray[np.bool_]


def render(plan: pd.DataFrame, *, size: int, progress: Callable[[Iterable], Iterable] = iter) -> Phantom:
    """Render every row of a plan at `size` x `size` pixels; `progress` may wrap the rows (`tqdm`).

    Raises ValueError for a size below 32.
    """
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, found {size}")
    piles = Pile(), Pile(), Pile()
    for case in progress(list(plan.itertuples())):
        for pile, array in zip(piles, _radiograph(case, size), strict=True):
            pile.put(array)
    return Phantom(*(pile.stacked() for pile in piles))


def _radiograph(case: Any, size: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
    """One film, its finding's mask and its lung field."""
    body = _draw(ANATOMY_RANGES, _stream(case.patient_seed, ANATOMY))
    view = _place(size, _draw(POSE_RANGES, _stream(case.case_seed, POSE)))
    chest = Chest(*_lungs(view, body), _heart(view, body))
    texture = view.field(_stream(case.patient_seed, TEXTURE))
    vessels = _vessels(_stream(case.patient_seed, VESSELS), view, body)
    opacity, line, mask = _findings(case, view, chest)
    # The heart pushes most of the air aside; findings, and the vessels that they leave visible, replace air.
    air = chest.air * (1 - 0.64 * chest.heart) * (1 - opacity) * (1 - vessels * np.maximum(1 - np.abs(opacity), 0))
    solid = _soft_tissue(view, body) * (1 + 0.03 * texture) + _bones(view, chest, body) + 0.06 * chest.heart
    seen = detect(
        solid - 0.70 * air + line,
        case,
        noise=_stream(case.case_seed, NOISE),
        letters=_stream(case.case_seed, MARKER),
    )
    return seen, mask, chest.air > 0.45


def _stream(seed: int, factor: int) -> np.random.Generator:
    return np.random.default_rng((seed, factor))


def _draw(ranges: dict[str, tuple[float, float]], rng: np.random.Generator) -> SimpleNamespace:
    """One normal draw a parameter, cut at two standard deviations."""
    draws = np.clip(rng.standard_normal(len(ranges)), -2, 2).tolist()
    pairs = zip(ranges.items(), draws, strict=True)
    return SimpleNamespace(**{name: mean + spread * z for (name, (mean, spread)), z in pairs})


MODES = 32
_frequency = np.hypot(*np.meshgrid(np.arange(MODES), np.arange(MODES)))
# Power falls as frequency to the 2.6th, as in real radiographs; nothing is constant over the picture.
_spectrum = np.where(_frequency > 0, np.maximum(_frequency, 1), np.inf) ** -1.3
_spectrum = np.tile(_spectrum / np.sqrt(np.sum(_spectrum**2)), (2, 2))


class View(NamedTuple):
    """Anatomical coordinates of every pixel centre, and the same without the turn for columns and rows."""

    x: Array
    y: Array
    columns: Array
    rows: Array

    def field(self, rng: np.random.Generator, *, zoom: float = 1.0) -> Array:
        """A random field of power-law spectrum and unit variance: a cosine series with normal coefficients."""
        waves = np.arange(MODES, dtype=np.float32) * np.float32(0.9 * np.pi * zoom)
        across, down = np.outer(self.columns, waves), np.outer(self.rows, waves)
        across, down = np.hstack([np.cos(across), np.sin(across)]), np.hstack([np.cos(down), np.sin(down)])
        # In float64: the rounding of a matrix product depends on the number of threads.
        return (down @ (rng.standard_normal(_spectrum.shape) * _spectrum) @ across.T).astype(np.float32)


def _place(size: int, pose: SimpleNamespace) -> View:
    centre = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / size) - 1
    columns, rows = (centre - pose.shift_x) / pose.scale, (centre - pose.shift_y) / pose.scale
    cos, sin = float(np.cos(pose.turn)), float(np.sin(pose.turn))
    return View(columns * cos + rows[:, None] * sin, rows[:, None] * cos - columns * sin, columns, rows)


def _step(t: Array) -> Array:
    """Smooth step from 0 at t = 0 to 1 at t = 1."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def _chord(r: Array) -> Array:
    """Chord through a unit ball at squared distance r from its centre, 0 to 1."""
    return np.sqrt(np.maximum(1 - r, 0))


def _ball(view: View, x: float, y: float, rx: float, ry: float) -> Array:
    """Squared distance from (x, y), in radii."""
    dx, dy = (view.x - x) / rx, (view.y - y) / ry
    return dx * dx + dy * dy


class Chest(NamedTuple):
    """What lies in every pixel's ray."""

    air: Array  # share of the lung's full depth, 0 to 1
    depth: Array  # distance to the nearest border of the lung, positive inside
    across: Array  # 0 at the midline, 1 at the chest wall
    heart: Array  # how far heart and great vessels fill the chest, 0 to 1


def _lungs(view: View, body: SimpleNamespace) -> tuple[Array, Array, Array]:
    """Two lungs: an arch that narrows to the apex, cut off below by the dome of the diaphragm."""
    s, left = np.abs(view.x), (view.x > 0).astype(np.float32)
    up = np.clip((0.15 - view.y) / (0.15 - body.lung_top), 0, 1.2)
    half = body.lung_width * (1 - 0.03 * left) * _chord(up * up * up) - np.maximum(up - 1, 0)
    centre = body.lung_gap + body.lung_width - 0.10 * up * up
    offset = (s - 0.33) / 0.35
    dome = body.dome + body.dome_left * left + body.dome_curve * offset * offset
    depth = np.minimum(half - np.abs(s - centre), dome - view.y)
    air = _step(depth / 0.045 + 0.3) * (0.74 + 0.26 * np.clip(depth / 0.25, 0, 1))
    return air, depth, s / (centre + np.maximum(half, 0.06) + 0.02)


def _heart(view: View, body: SimpleNamespace) -> Array:
    """Heart, aortic knob and mediastinum, whose silhouettes run into one another."""
    s, y, heart_y = np.abs(view.x), view.y, body.dome - body.heart_rise
    band = body.mediastinum - s + 0.05 * np.clip(-0.45 - y, 0, 0.3)
    cos, sin = float(np.cos(body.heart_tilt)), float(np.sin(body.heart_tilt))
    dx, dy = view.x - body.heart_x, y - heart_y
    along, across = (dx * cos + dy * sin) / 0.355, (dy * cos - dx * sin) / 0.25
    ventricle = (body.heart_size - np.sqrt(along * along + across * across)) * 0.28
    atrium = (1 - np.sqrt(_ball(view, -0.035, heart_y + 0.03, 0.15, 0.21))) * 0.15
    knob = (1 - np.sqrt(_ball(view, 0.085, -0.33, body.knob, body.knob))) * body.knob
    depth = band
    for part in (ventricle, atrium, knob):
        # Smooth maximum, with a fillet of 0.04.
        depth = 0.5 * (depth + part + np.sqrt((depth - part) ** 2 + 0.0016))
    return _step(depth / 0.05 + 0.1) * (0.72 + 0.28 * np.clip(depth / 0.2, 0, 1))


def _soft_tissue(view: View, body: SimpleNamespace) -> Array:
    """Skin to skin: neck, shoulders, torso and abdomen, with breasts; trachea and stomach hold air."""
    x, y, s = view.x, view.y, np.abs(view.x)
    flare = _step((y - body.shoulder + 0.2) / 0.42)
    width = body.neck + (1.12 - body.neck) * flare - (1.12 - body.torso) * _step((y + 0.55) / 0.7)
    q = (s / width) ** 2
    tissue = _chord(q * q) * (0.80 + 0.32 * _step((y + 0.9) / 1.4)) * body.build
    tissue -= 0.16 * _step((0.045 - np.abs(x + 0.012 * y)) / 0.03) * _step((-0.18 - y) / 0.14)
    fold = 1 - ((s - 0.46) / 0.34) ** 2 - ((y - 0.16) / 0.34) ** 2
    tissue += body.breast * _step(fold * 1.4)
    bubble = _ball(view, 0.36, body.dome + 0.17, 0.17, 0.075)
    return tissue - body.stomach * _step(1.2 - bubble)


def _bones(view: View, chest: Chest, body: SimpleNamespace) -> Array:
    """Ribs as two families of arcs that meet at the chest wall, the spine, clavicles, shoulder blades."""
    s, y, q = np.abs(view.x), view.y, chest.across
    rise = 0.55 + 0.45 * np.clip((y + 0.8) / 0.6, 0, 1)
    level = y / body.rib_gap + body.rib_phase
    slope = rise * (body.rib_slope / body.rib_gap)
    back = _rib(level - slope * (1.35 * q * q - 0.35 * q), 0.19) * _step((q - 0.1) / 0.1)
    front = _rib(level - slope * (2.25 - 1.25 * q), 0.22) * _step((q - 0.42) / 0.25)
    cage = _step((1.05 - q) / 0.06) * _step((0.72 - y) / 0.3) * _step((y - body.lung_top + 0.04) / 0.06)
    bones = body.rib_strength * cage * (back * (1 + 0.5 * q * q * q) + 0.55 * front)
    level = 2 * np.pi * (y / body.vertebra + body.vertebra_phase)
    disc, width = np.cos(level), body.spine * (0.92 + 0.14 * np.clip(y, -1, 1))
    column = _step((width + 0.006 * disc - s) / 0.05 + 0.5)
    pedicle = np.exp(-(((s - 0.6 * width) / 0.016) ** 2)) * np.maximum(disc, 0)
    bones += column * (0.11 + 0.03 * disc) + 0.05 * pedicle
    shaft = y - body.clavicle + body.clavicle_slope * (s - 0.08) - 0.06 * np.sin(5.2 * s - 0.2)
    bones += 0.22 * _tube((shaft / 0.032) ** 2) * _step((s - 0.05) / 0.05) * _step((0.78 - s) / 0.08)
    blade = np.sqrt(((s - 0.74 - 0.2 * (y + 0.3)) / 0.16) ** 2 + ((y + 0.30) / 0.32) ** 2)
    return bones + 0.04 * _step((1 - blade) / 0.2) + 0.05 * np.exp(-(((blade - 0.96) / 0.07) ** 2))


def _rib(phase: Array, half: float) -> Array:
    return _tube(((phase - np.rint(phase)) / half) ** 2)


def _tube(r: Array) -> Array:
    """Chord through a bone at squared distance r from its axis: a dense rim, a lighter core."""
    return np.sqrt(np.maximum(1 - r, 0)) - 0.45 * np.sqrt(np.maximum(0.55 - r, 0))


GENERATIONS, TRUNKS, POINTS = 5, 7, 9


def _tree(rng: np.random.Generator, hilum_y: float) -> tuple[NDArray, NDArray, NDArray]:
    """Pulmonary vessels as points and the blood at each: trunks leave either hilum, wander, and fork in two.

    Each (POINTS, vessels), by generation: the first 3 / 31 of the vessels are trunks and their first branches.
    """
    side = np.repeat([-1.0, 1.0], TRUNKS)
    x, y = 0.12 * side, hilum_y - 0.04 * (side > 0) + rng.normal(0, 0.03, side.size)
    heading = np.tile(np.linspace(-1.35, 1.45, TRUNKS), 2) + rng.normal(0, 0.12, side.size)
    tree = []
    for generation in range(GENERATIONS):
        stride = 0.115 / POINTS * np.exp(rng.normal(0, 0.25, side.size))
        heading = heading + np.cumsum(rng.normal(0, 0.09, (POINTS, side.size)), axis=0)
        xs = x + np.cumsum(side * stride * np.cos(heading), axis=0)
        ys = y + np.cumsum(stride * np.sin(heading), axis=0)
        tree.append((xs, ys, np.broadcast_to(stride * 0.6**generation, xs.shape)))
        x, y, side = np.repeat(xs[-1], 2), np.repeat(ys[-1], 2), np.repeat(side, 2)
        heading = np.repeat(heading[-1], 2) + np.tile([-1, 1], side.size // 2) * rng.uniform(0.2, 0.6, side.size)
    xs, ys, blood = (np.hstack(part) for part in zip(*tree, strict=True))
    return xs, ys, blood


def _vessels(rng: np.random.Generator, view: View, body: SimpleNamespace) -> Array:
    """Share of the air that blood vessels and the hila replace."""
    tree = _tree(rng, body.hilum_y)
    large = 3 * 2 * TRUNKS
    trunks = _deposit(view, *(part[:, :large] for part in tree), width=0.013)
    twigs = _deposit(view, *(part[:, large:] for part in tree), width=0.007)
    hila = np.exp(-_ball(view, 0.13, body.hilum_y - 0.02, 0.10, 0.14))
    hila += np.exp(-_ball(view, -0.13, body.hilum_y + 0.02, 0.10, 0.14))
    return body.vessels * (0.009 * trunks + 0.008 * twigs + 0.25 * hila)


def _deposit(view: View, x: NDArray, y: NDArray, mass: NDArray, *, width: float) -> Array:
    """Mass per area: each point is shared among the four pixels around it, then blurred to a standard deviation."""
    size, pitch = len(view.columns), float(view.columns[1] - view.columns[0])
    column, row = (x - float(view.columns[0])) / pitch, (y - float(view.rows[0])) / pitch
    inside = (column >= 0) & (column < size - 1) & (row >= 0) & (row < size - 1)
    column, row, mass = column[inside], row[inside], mass[inside] / pitch**2
    corner = row.astype(int) * size + column.astype(int)
    right, down = column % 1, row % 1
    shares = [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right]
    index = np.concatenate([corner, corner + 1, corner + size, corner + size + 1])
    total = np.bincount(index, np.concatenate([mass * share for share in shares]), size * size)
    return ndimage.gaussian_filter(total.reshape(size, size).astype(np.float32), width / pitch, truncate=3)


def _findings(case: Any, view: View, chest: Chest) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Share of the air that the finding replaces, attenuation of the mimic, the finding's mask."""
    opacity, line, mask = np.zeros_like(view.x), np.zeros_like(view.x), np.zeros(view.x.shape, bool)
    if case.finding != "none":
        profile = FINDINGS[case.finding](_stream(case.case_seed, FINDING), view, chest)
        opacity = np.minimum(case.amplitude * profile, 1)
        extent = np.abs(profile) * chest.air
        mask = extent >= 0.4 * extent.max()
    if case.mimic != "none":
        line = MIMICS[case.mimic](_stream(case.case_seed, MIMIC), view, chest)
    return opacity, line, mask


def _spot(rng: np.random.Generator, top: float, bottom: float) -> tuple[float, float]:
    """A place in either lung, between two heights."""
    return float(rng.choice([-1, 1])) * rng.uniform(0.28, 0.56), rng.uniform(top, bottom)


def _lobar(rng: np.random.Generator, view: View, chest: Chest) -> Array:
    """One large airless region with an irregular, rather sharp border."""
    r = _ball(view, *_spot(rng, -0.40, 0.18), rng.uniform(0.19, 0.27), rng.uniform(0.17, 0.27))
    wobble = view.field(rng)
    return _step((1.15 - np.sqrt(r) - 0.16 * wobble) / 0.55) * (1 + 0.12 * wobble)


def _patchy(rng: np.random.Generator, view: View, chest: Chest) -> Array:
    """A handful of small, ill-defined shadows close together."""
    x, y = _spot(rng, -0.35, 0.15)
    wobble, clear = np.exp(0.25 * view.field(rng)), np.ones_like(view.x)
    for _ in range(rng.integers(5, 9)):
        radius = rng.uniform(0.065, 0.10)
        shadow = _ball(view, x + rng.normal(0, 0.10), y + rng.normal(0, 0.16), radius, radius)
        clear *= 1 - np.exp(-shadow * wobble)
    return 1 - clear


def _interstitial(rng: np.random.Generator, view: View, chest: Chest) -> Array:
    """A net of fine lines in the lower zones of both lungs."""
    net = np.abs(view.field(rng, zoom=2.5))
    return 0.8 * _step((view.y + rng.uniform(0.30, 0.60)) / 0.5) * np.clip(1.1 - net / 0.7, 0, 1)


def _retrocardiac(rng: np.random.Generator, view: View, chest: Chest) -> Array:
    """A round airless region behind the heart, on the patient's left."""
    radius = rng.uniform(0.09, 0.12)
    r = _ball(view, rng.uniform(0.16, 0.26), rng.uniform(0.14, 0.28), radius, radius)
    return 1.9 * np.exp(-r * r) * _step(chest.heart / 0.3)


def _pneumothorax(rng: np.random.Generator, view: View, chest: Chest) -> Array:
    """Free air between the chest wall and a lung that has shrunk from it, widest at the apex."""
    side = np.sign(view.x) == rng.choice([-1, 1])
    gap = rng.uniform(0.09, 0.15) * _step((0.30 - view.y) / 0.8) - chest.depth
    lateral = side * _step((chest.across - 0.45) / 0.15)
    return lateral * (0.5 * np.exp(-((gap / 0.010) ** 2)) - 0.4 * _step(gap / 0.012 + 0.5))


def _atelectasis(rng: np.random.Generator, view: View, chest: Chest) -> Array:
    """A thin plate of collapsed lung in a lower zone."""
    x, y = _spot(rng, 0.05, 0.28)
    along = view.x - x
    plate = np.exp(-(((view.y - y - rng.normal(0, 0.15) * along) / 0.012) ** 2)) * _step((0.16 - np.abs(along)) / 0.08)
    return 0.22 * plate * (chest.depth > 0)


def _nipple(rng: np.random.Generator, view: View, chest: Chest) -> Array:
    """A small round shadow of the skin, low and lateral."""
    x, y = _spot(rng, 0.16, 0.26)
    r = _ball(view, x + 0.08 * np.sign(x), y, 0.04, 0.04)
    return 0.18 * _step((1 - np.sqrt(r)) / 0.4)


FINDINGS = {
    "lobar": _lobar,
    "patchy": _patchy,
    "interstitial": _interstitial,
    "retrocardiac": _retrocardiac,
    "pneumothorax": _pneumothorax,
}
MIMICS = {"atelectasis": _atelectasis, "nipple": _nipple}

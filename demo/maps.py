"""Where the members looked, of one case: for the answer that is given, untrained, and under each mild change."""

from typing import Any

import numpy as np

from demo import page, pictures
from demo.cases import Collection, image
from demo.disk import NOT_MEASURED, Disk, figure
from demo.page import Overlay, Picture, Section
from tmv_lib.calibration.calibrators import read_calibrators
from tmv_lib.explanations import map_verdict
from tmv_lib.pipeline.record import CALIBRATORS
from tmv_lib.stability import perturbations


def first(found: list[Overlay]) -> Overlay:
    """The map that is laid over the film: the first member's whose maps deserve a look, else the first member's."""
    return next((overlay for overlay in found if overlay.usable), found[0])


def further(cases: Collection, number: int) -> list[Section]:
    """Every member's map beside an untrained network's, and under each change. Raises ValueError where deferred."""
    own = [overlay.side_by_side(image(cases, number)) for overlay in overlays(cases, number)]
    changes = changed(cases, number) or [Section("", [f"The same image under mild changes: {NOT_MEASURED}."])]
    return [*own, *changes]


def overlays(cases: Collection, number: int) -> list[Overlay]:
    """Every member's map of a decided case. Raises ValueError for a deferred one, which shows none."""
    case, target = _decided(cases, number)
    found = []
    for name in cases.members:
        own = _map(cases, f"data/explanations/maps_{name}.npy", case, target)
        logit = case.get(f"untrained_logit_{name}")
        path = f"data/explanations/untrained_{name}.npy"
        fresh = None if logit is None else _map(cases, path, case, 1 if logit > 0 else -1)
        found.append(Overlay(name, cases.names.called(target > 0), own, fresh, *verdict(cases.disk, name)))
    return found


def verdict(disk: Disk, name: str) -> tuple[str, bool]:
    """Whether the maps of a member deserve a look, in a sentence, and whether they do."""
    judged = figure(disk.mapping("metrics/explanations.json"), f"explanations.{name}.verdict")
    if not judged:
        return f"Whether these maps deserve a look: {NOT_MEASURED}.", False
    return map_verdict.sentence(judged), judged["usable"]


def _decided(cases: Collection, number: int) -> tuple[Any, int]:
    """The case, and the sign of a map that speaks for its answer."""
    case = cases.table.loc[number]
    if case["deferred"]:
        raise ValueError(f"case {number} is deferred: no map of it is shown")
    return case, 1 if case["decision"] == 1 else -1


def _map(cases: Collection, path: str, case: Any, target: int) -> np.ndarray | None:
    maps = cases.disk.read(path)
    if maps is None or len(maps) <= case["later"]:
        return None
    return np.asarray(maps[int(case["later"])], dtype=np.float32) * target


def changed(cases: Collection, number: int) -> list[Section]:
    """A decided case under every mild change, a member each: what it says, where it looks; empty without `stability`.

    Raises ValueError for a deferred case.
    """
    case, target = _decided(cases, number)
    logits, sizes = cases.disk.read("data/stability/logits.csv"), figure(cases.disk.read("params.yaml"), "stability")
    if logits is None or sizes is None or "rank_correlation" not in logits:
        return []
    levels = image(cases, number)[None].astype(np.float32) / 255
    views = {name: change.apply(levels)[0] for name, change in perturbations.mild(sizes, seed=sizes["seed"]).items()}
    found = []
    for name in cases.members:
        own = logits[(logits["member"] == name) & (logits["image_id"] == case["image_id"])].set_index("perturbation")
        seen = _map(cases, f"data/stability/maps_{name}.npy", case, target)
        if seen is None or set(own.index) != set(views) or len(seen) != len(views):
            continue
        said = case.get(f"y_prob_{name}", case["y_prob"]) > 0.5  # by the member itself; the answer given may be another
        flipped = (own["logit"] > _boundary(cases, name)) != said
        scale, shown = pictures.scale_of(seen), []
        for change, attribution in zip(own.index, seen, strict=True):
            pixels = pictures.view((255 * views[change]).round().astype(np.uint8))
            colours = pictures.coloured(attribution, scale=scale)
            alike = own["rank_correlation"][change]
            caption = f"{change}: " + ("no map to compare" if np.isnan(alike) else f"likeness {alike:.2f}")
            caption += ", answer flips" if flipped[change] else ""
            alt = page.strongest(f"Case {number} under {change}, {name}", attribution)
            shown.append(Picture(pictures.png(pictures.over(pixels, colours, opacity=pictures.OPACITY)), alt, caption))
        words = f"{name}: its answer flips under {flipped.sum()} of {len(flipped)} changes that should not matter."
        found.append(Section("", [words], shown))
    return found


def _boundary(cases: Collection, name: str) -> float:
    """The raw logit above which a member says positive."""
    path = cases.disk.root / CALIBRATORS
    return read_calibrators(path)[name].boundary() if path.is_file() else 0.0

"""Where the members looked, of one case: for the answer that is given, untrained, and under each mild change."""

from typing import Any, NamedTuple

import numpy as np

from demo import pictures
from demo.cases import Collection, image
from demo.disk import NOT_MEASURED, Disk, figure
from demo.page import Picture
from tmv_lib.calibration.calibrators import read_calibrators
from tmv_lib.explanations import map_verdict
from tmv_lib.stability import perturbations

OPACITY = 0.65  # of the maps under each change, which nobody turns


class Overlay(NamedTuple):
    """One member's map of the answer that is given, and that of an untrained network, each (h, w) or None."""

    member: str
    names: str
    own: np.ndarray | None
    untrained: np.ndarray | None
    verdict: str

    @property
    def sizes(self) -> str:
        """What the one scale of both maps, shares of a map's own maximum, leaves out."""
        if self.own is None or self.untrained is None:
            return "Colours are shares of the map's own maximum."
        own, untrained = (pictures.scale_of(each) for each in (self.own, self.untrained))
        return (
            "Colours are shares of each map's own maximum, on one scale from 0 to 1:"
            f" {own:.2g} here and {untrained:.2g} in the untrained network."
        )

    @property
    def words(self) -> str:
        """What the map says, for those who do not see it."""
        return _strongest(f"Map of {self.member} for {self.names}", self.own)

    @property
    def untrained_words(self) -> str:
        """The same of the untrained network."""
        return _strongest(f"Map of an untrained {self.member}", self.untrained)


def _strongest(what: str, attribution: np.ndarray | None) -> str:
    if attribution is None:
        return f"{what}: {NOT_MEASURED}."
    return f"{what}: strongest {pictures.where(attribution)}. {pictures.MAP_NOTE}"


def overlays(cases: Collection, number: int) -> list[Overlay]:
    """Every member's map of a decided case. Raises ValueError for a deferred one, which shows none."""
    case = _decided(cases, number)
    found = []
    for name in cases.members:
        target = 1 if case["decision"] == 1 else -1
        fresh = case.get(f"untrained_logit_{name}")
        found.append(
            Overlay(
                name,
                cases.names.called(target > 0),
                _map(cases, f"data/explanations/maps_{name}.npy", case, target),
                None
                if fresh is None
                else _map(cases, f"data/explanations/untrained_{name}.npy", case, 1 if fresh > 0 else -1),
                verdict(cases.disk, name),
            )
        )
    return found


def verdict(disk: Disk, name: str) -> str:
    """Whether the maps of a member deserve a look, in a sentence."""
    judged = figure(disk.metrics("explanations"), "explanations", name, "verdict")
    return map_verdict.sentence(judged) if judged else f"Whether these maps deserve a look: {NOT_MEASURED}."


def _decided(cases: Collection, number: int) -> Any:
    case = cases.table.loc[number]
    if case["deferred"]:
        raise ValueError(f"case {number} is deferred: no map of it is shown")
    return case


def _target(case: Any, name: str) -> int:
    """Which class the member names itself; the answer given may be another."""
    return 1 if case.get(f"y_prob_{name}", case["y_prob"]) > 0.5 else -1


def _map(cases: Collection, path: str, case: Any, target: int) -> np.ndarray | None:
    maps = cases.disk.array(path)
    if maps is None or len(maps) <= case["later"]:
        return None
    return np.asarray(maps[int(case["later"])], dtype=np.float32) * target


class Changed(NamedTuple):
    """What one member says and where it looks under each mild change: a sentence, and a picture a change."""

    member: str
    words: str
    pictures: list[Picture]


def changed(cases: Collection, number: int) -> list[Changed]:
    """A decided case under every mild change, with each member's map; empty where `stability` has left none."""
    case = _decided(cases, number)
    logits, sizes = cases.disk.table("data/stability/logits.csv"), cases.disk.yaml("params.yaml").get("stability")
    if logits is None or sizes is None or "rank_correlation" not in logits:
        return []
    levels = image(cases, number)[None].astype(np.float32) / 255
    views = {name: change.apply(levels)[0] for name, change in perturbations.mild(sizes, seed=sizes["seed"]).items()}
    found = []
    for name in cases.members:
        maps = cases.disk.array(f"data/stability/maps_{name}.npy")
        own = logits[(logits["member"] == name) & (logits["image_id"] == case["image_id"])].set_index("perturbation")
        if maps is None or set(own.index) != set(views) or maps.shape[1] != len(views):
            continue
        seen = np.asarray(maps[int(case["later"])], dtype=np.float32) * (1 if case["decision"] == 1 else -1)
        scale, boundary = pictures.scale_of(seen), _boundary(cases, name)
        flipped = {change: (own["logit"][change] > boundary) != (_target(case, name) > 0) for change in own.index}
        shown = []
        for place, change in enumerate(own.index):
            pixels = pictures.view((255 * views[change]).round().astype(np.uint8), side=pictures.THUMBNAIL)
            colours = pictures.coloured(seen[place], scale=scale, side=pictures.THUMBNAIL)
            alike = own["rank_correlation"][change]
            caption = f"{change}: " + ("no map to compare" if np.isnan(alike) else f"likeness {alike:.2f}")
            caption += ", answer flips" if flipped[change] else ""
            alt = _strongest(f"Case {number} under {change}, {name}", seen[place])
            shown.append(Picture(pictures.png(pictures.over(pixels, colours, opacity=OPACITY)), alt, caption))
        words = (
            f"{name}: its answer flips under {sum(flipped.values())} of {len(flipped)} changes that should not matter."
        )
        found.append(Changed(name, words, shown))
    return found


def _boundary(cases: Collection, name: str) -> float:
    """The raw logit above which a member says positive."""
    path = cases.disk.root / "data/calibration/calibrators.json"
    return read_calibrators(path)[name].boundary() if path.is_file() else 0.0

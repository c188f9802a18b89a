"""The picture of docs/architecture.md, drawn from the imports of the code.

Run by `make architecture`; writes docs/architecture.svg. A test draws it again and compares.
"""

import ast
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

from tmv_lib.pipeline.files import whole

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs/architecture.svg"
# From the top; a wing imports from its own floor and from those below. What stands on no floor is not drawn.
FLOORS = (
    ("stages", "commands", "demo"),
    ("card", "prediction"),
    ("failures", "site", "stability"),
    ("reading", "deferral", "uncertainty", "explanations"),
    ("data", "calibration", "network"),
    ("phantom", "pipeline", "statistics"),
)
EVERYBODY = ("pipeline", "statistics")  # everybody imports these: no arrow is drawn
NOTES = {
    0: "each stage imports the wing of its question, commands and demo what they show",
    5: "every wing imports pipeline and statistics",
}


def wings() -> dict[str, set[str]]:
    """What each wing, and each folder beside the library, imports of the other wings."""
    found: dict[str, set[str]] = {}
    for path in [*ROOT.glob("tmv_lib/*/*.py"), *(p for name in FLOORS[0] for p in ROOT.glob(f"{name}/*.py"))]:
        imports = found.setdefault(path.parent.name, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tmv_lib."):
                imports.add(str(node.module).split(".")[1])
    return {name: imports - {name} for name, imports in found.items()}


def says(name: str) -> str:
    """What a wing is about: the docstring of its package."""
    path = ROOT / f"tmv_lib/{name}/__init__.py"
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" if path.is_file() else ""


def arrows() -> list[tuple[str, str]]:
    """Who imports whom, less what another path of imports shows already."""
    imports = {name: of - set(EVERYBODY) for name, of in wings().items() if name not in FLOORS[0]}

    def reached(name: str) -> set[str]:
        return set().union(*({other} | reached(other) for other in imports[name]))

    return [
        (name, other)
        for name, of in imports.items()
        for other in sorted(of)
        if not any(other in reached(third) for third in of - {other})
    ]


def draw(path: Path) -> None:
    """Wings on their floors, and an arrow from each to the wings that it imports."""
    matplotlib.rcParams["svg.hashsalt"] = "tmv"
    figure, axis = plt.subplots(figsize=(9.5, 7.2))
    place = {}
    for level, floor in enumerate(FLOORS):
        for k, name in enumerate(floor):
            place[name] = ((k + 0.5) / len(floor) * 10, -1.3 * level)
    for name, other in arrows():
        (x, y), (to_x, to_y) = place[name], place[other]
        level = y == to_y
        axis.annotate(
            "",
            xy=(to_x, to_y + (0 if level else 0.28)),
            xytext=(x, y - (0 if level else 0.28)),
            zorder=0,  # behind the boxes that it passes
            arrowprops={"arrowstyle": "->", "color": "#7a8794", "shrinkA": 34 * level, "shrinkB": 34 * level},
        )
    for name, (x, y) in place.items():
        box = FancyBboxPatch((x - 0.72, y - 0.25), 1.44, 0.5, boxstyle="round,pad=0.03", fc="#eef3f8", ec="#34495e")
        axis.add_patch(box)
        axis.text(x, y, name, ha="center", va="center", fontsize=10)
    for level, note in NOTES.items():
        axis.text(5, -1.3 * level - 0.5, note, ha="center", va="center", fontsize=8.5, color="#566573", style="italic")
    axis.set(xlim=(0, 10), ylim=(-1.3 * len(FLOORS) + 0.8, 0.5))
    axis.axis("off")
    with whole(path) as temporary:
        figure.savefig(temporary, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(PICTURE)

"""The picture docs/architecture.svg, drawn from the imports of the code.

Run by `python -m studies.architecture`. A test draws it again and compares.
"""

import ast
from html import escape
from pathlib import Path
from textwrap import wrap

from tmv_lib.pipeline.files import whole

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs/architecture.svg"
FOLDERS = {  # beside the library; they import any wing, no arrow is drawn
    "stages": "One script per question: read, ask, write.",
    "commands": "What a person runs on a finished run.",
    "demo": "The viewer of a finished run.",
}
EVERYBODY = ("pipeline", "statistics")  # nearly every wing imports these, no arrow is drawn
# Column, 0 to 9, and floor from the top: a wing imports from below, and on its own floor from the right.
PLACES = {
    "report": (0.1, 0),
    "card": (2.3, 0),
    "prediction": (4.7, 0),
    "repairs": (6.45, 0),
    "monitoring": (8.2, 0),
    "stability": (2.75, 1),
    "readers": (4.55, 1),
    "failures": (6.35, 1),
    "site": (8.2, 1),
    "explanations": (0.2, 2),
    "uncertainty": (2.5, 2),
    "reading": (4.3, 2),
    "deferral": (7.5, 2),
    "network": (0.2, 3),
    "calibration": (3.4, 3),
    "data": (6.35, 3),
    "phantom": (8.2, 3),
}
COLUMN, FLOOR, WIDTH, HEIGHT = 116, 128, 190, 76  # pixels
HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1152 726" font-family="sans-serif">
<title>Which wing imports which</title>
<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 0 8 4 0 8z" fill="#5d6d7e"/></marker>
<rect width="100%" height="100%" fill="#fff"/>
"""


def wings() -> dict[str, set[str]]:
    """What each wing, and each folder beside the library, imports of the other wings."""
    found: dict[str, set[str]] = {}
    for path in [*ROOT.glob("tmv_lib/*/*.py"), *(path for name in FOLDERS for path in ROOT.glob(f"{name}/*.py"))]:
        imports = found.setdefault(path.parent.name, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tmv_lib."):
                imports.add(str(node.module).split(".")[1])
    return {name: imports - {name} for name, imports in found.items()}


def arrows() -> list[tuple[str, str]]:
    """Which wing imports which, less what another path of imports shows already."""
    imports = {name: of - set(EVERYBODY) for name, of in wings().items() if name not in FOLDERS}

    def reached(name: str) -> set[str]:
        return imports[name].union(*map(reached, imports[name]))

    return sorted(
        (name, other) for name, of in imports.items() for other in of if not any(other in reached(by) for by in of)
    )


def drawn() -> str:
    """The picture: a box with its question for every wing, and an arrow to each wing that it imports."""
    parts = [_note(0, "import any wing below"), _note(5, "imported by nearly every wing above")]
    for name, other in arrows():
        (x, y), (to_x, to_y) = (_corner(*PLACES[wing]) for wing in (name, other))
        if y == to_y:
            ends = x + WIDTH, y + HEIGHT / 2, to_x, y + HEIGHT / 2
        else:
            ends = x + WIDTH / 2, y + HEIGHT, to_x + WIDTH / 2, to_y
        line = '<line x1="{:.0f}" y1="{:.0f}" x2="{:.0f}" y2="{:.0f}" stroke="#5d6d7e" marker-end="url(#tip)"/>'
        parts.append(line.format(*ends))
    for name, (column, floor) in PLACES.items():
        parts.append(_box(name, _question(name), *_corner(column, floor), WIDTH))
    for k, (name, text) in enumerate(FOLDERS.items()):
        parts.append(_box(name, text, *_corner(0.1 + 3.29 * k, -1), 3.16 * COLUMN, height=48))
    for k, name in enumerate(EVERYBODY):
        parts.append(_box(name, _question(name), *_corner(0.1 + 4.93 * k, 4), 4.81 * COLUMN, height=48))
    return HEAD + "\n".join(parts) + "\n</svg>\n"


def _corner(column: float, floor: int) -> tuple[float, float]:
    return column * COLUMN, FLOOR * (floor + 1) + 8


def _question(name: str) -> str:
    """What a wing is about: the docstring of its package."""
    return str(ast.get_docstring(ast.parse((ROOT / f"tmv_lib/{name}/__init__.py").read_text(encoding="utf-8"))))


def _box(name: str, text: str, x: float, y: float, width: float, *, height: int = HEIGHT) -> str:
    middle = f"{x + width / 2:.0f}"
    lines = "".join(f'<tspan x="{middle}" dy="14">{escape(line)}</tspan>' for line in wrap(text, int(width / 6.2)))
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height}" fill="#eef3f8" stroke="#34495e"/>\n'
        f'<text x="{middle}" y="{y + 21:.0f}" text-anchor="middle" font-size="11">'
        f'<tspan font-size="15" font-weight="bold">{name}</tspan>{lines}</text>'
    )


def _note(floor: int, text: str) -> str:
    y = FLOOR * floor + (76 if floor == 0 else -4)
    return f'<text x="{9.8 * COLUMN:.0f}" y="{y}" text-anchor="end" font-size="11" fill="#5d6d7e">{text}</text>'


if __name__ == "__main__":
    with whole(PICTURE) as temporary:
        temporary.write_text(drawn(), encoding="utf-8")

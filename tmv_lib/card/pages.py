"""How every page is made: a template beside the code of its wing, in which a name that is not there is an error."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parents[1]),
    autoescape=lambda name: str(name).endswith(".html.j2"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def fill(template: str, **values: Any) -> str:
    """The template `<wing>/<name>` with these values; what they hold is escaped where the page is HTML."""
    return _TEMPLATES.get_template(template).render(values)

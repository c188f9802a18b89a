"""What the site has beyond the pages of docs/: README in front, files that pages link to, the API, a page per wing."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
WINGS = sorted(path.parent.name for path in ROOT.glob("tmv_lib/*/__init__.py"))
PAGES = {  # of the site, by file outside docs/; README stands for docs/index.md
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r'(\]\(|src="|href=")(?!\w+:|#)([^)"\s]+)')
DOCTEST = re.compile(r"^>>> (?:.+\n?)+", re.MULTILINE)
OUTSIDE = "outside"  # the folder of the site with what lies outside docs/


class Doctests(griffe.Extension):
    """Examples in docstrings as code, which Markdown takes for quotations."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub("```pycon\n\\g<0>\n```\n", obj.docstring.value)


def on_config(config: MkDocsConfig) -> None:
    assert config.nav is not None
    reference = next(section["Reference"] for section in config.nav if "Reference" in section)
    reference.append({"API": [{wing: f"api/{wing}.md"} for wing in WINGS]})


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Every page with its links as they are from within the site, and what they lead to."""
    sources = {file.src_uri: f"docs/{file.src_uri}" for file in files.documentation_pages()}
    sources |= {page: source for source, page in PAGES.items()}
    linked: set[Path] = set()
    for page, source in sources.items():
        if source.endswith(".md"):
            links = partial(_inside, folder=(ROOT / source).parent, linked=linked)
            _put(files, File.generated(config, page, content=LINK.sub(links, (ROOT / source).read_text("utf-8"))))
    for path in linked:
        _put(files, File.generated(config, _outside(path), abs_src_path=str(path)))
    for wing in WINGS:
        _put(files, File.generated(config, f"api/{wing}.md", content=f"# {wing}\n\n::: tmv_lib.{wing}\n"))


def _inside(link: re.Match[str], folder: Path, linked: set[Path]) -> str:
    """A link of a page that lies in `folder`, as it is from within the site; notes what it takes from outside docs/."""
    return link[1] + _target(link[2], folder, linked)


def _target(target: str, folder: Path, linked: set[Path]) -> str:
    path = (folder / target.split("#")[0]).resolve()
    place = str(path.relative_to(ROOT))
    if place in PAGES:
        return target.replace(target.split("#")[0], PAGES[place])
    if path.is_relative_to(ROOT / "docs"):
        return target.removeprefix("docs/")
    linked.add(path)
    return _outside(path)


def _outside(path: Path) -> str:
    """Where the site has a file that lies outside docs/; Markdown there is a file, not a page."""
    return f"{OUTSIDE}/{path.relative_to(ROOT)}{'.txt' if path.suffix == '.md' else ''}"


def _put(files: Files, file: File) -> None:
    if known := files.get_file_from_path(file.src_uri):
        files.remove(known)
    files.append(file)

"""The house: how long a stage, a function and a module may be, which way imports run, and where sentences are made."""

import ast
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from studies import architecture

ROOT = Path(__file__).parents[1]
STAGES = sorted((ROOT / "stages").glob("[!_]*.py"))
PRODUCT = sorted(path for folder in ("stages", "tmv_lib", "commands", "demo") for path in (ROOT / folder).rglob("*.py"))
PRODUCT = [path for path in PRODUCT if "tests" not in path.parts]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def strings(path: Path) -> list[str]:
    """Every string of a module, and of an f-string the parts outside braces."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


@pytest.mark.parametrize("path", STAGES, ids=named)
def test_a_stage_is_one_screen(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("path", PRODUCT, ids=named)
def test_no_module_and_no_function_is_long(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert lines <= 50, f"{node.name} has a body of {lines} lines"


def test_imports_run_downwards():
    """From floor to floor, and on one floor to the right, so that no two wings import each other."""
    imports, places = architecture.wings(), architecture.PLACES
    assert set(imports) == {*architecture.FOLDERS, *places, *architecture.EVERYBODY}
    for wing, (column, floor) in places.items():
        others = [places[other] for other in imports[wing] - {*architecture.EVERYBODY}]
        assert all(below > floor or (below == floor and right > column) for right, below in others), wing
    assert imports["pipeline"] <= {"statistics"}
    assert not imports["statistics"]


def test_the_picture_of_the_house_is_that_of_the_code():
    assert architecture.drawn() == architecture.PICTURE.read_text(encoding="utf-8")


def test_only_those_who_may_know_paths():
    """Nothing but stages, commands, pipeline, prediction and card names a file below data/, metrics/ or plots/."""
    for path in (ROOT / "tmv_lib").glob("*/*.py"):
        if path.parent.name in ("pipeline", "prediction", "card"):
            continue
        assert not [text for text in strings(path) if re.match(r"(data|metrics|plots)/\w+/?[\w./{}]*$", text)], named(
            path
        )


def test_suffixes_of_estimates_are_built_and_parsed_in_one_place():
    """`_low`, `_high` and the like belong to pipeline/metrics.py and its reader in pipeline/record.py."""
    wrong = re.compile(r"_(low|high|absent|p_value|p_value_holm)(}|$)")
    for path in PRODUCT:
        if path.parent.name == "pipeline":
            continue
        found = [text for text in strings(path) if wrong.search(text)]
        # McNemar's p-value has no figure beside it: it is one
        assert set(found) <= {"mcnemar_p_value"}, named(path)


def test_no_code_parses_a_sentence():
    """Words of a metric, a card or an error are never searched, split or cut to decide something."""
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and any(isinstance(op, (ast.In, ast.NotIn)) for op in node.ops):
                left = node.left
                sentence = isinstance(left, ast.Constant) and isinstance(left.value, str) and " " in left.value.strip()
                assert not sentence, f"{named(path)}:{node.lineno}"


@pytest.mark.parametrize("path", sorted((ROOT / "tmv_lib").glob("*/*.py")), ids=named)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=named)
def test_what_a_page_points_to_is_there(page):
    """Its links, and the files and folders of code that it names; a command of another commit names that commit."""
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"`((?:tmv_lib|stages|commands|demo|studies|benchmarks|tests|docs)/[\w./-]*\w)`", text):
        assert (ROOT / name).exists(), name
    for module in re.findall(r"python -m ((?:stages|commands|demo|studies|benchmarks)[\w.]*)(?!.*at commit)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or path.is_dir(), module
    for module, names in re.findall(r"^from (tmv_lib[\w.]*) import ([\w, ]+)", text, re.MULTILINE):
        there = import_module(module)
        for name in (part.split(" ")[0] for part in names.split(", ")):
            assert hasattr(there, name) or find_spec(f"{module}.{name}"), name


def test_the_index_lists_every_page():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".ipynb")} - {"index.md"}
    assert pages <= set(re.findall(r"\]\(([^)#]+)", index))

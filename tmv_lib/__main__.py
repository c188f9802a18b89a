"""`tmv evaluate ...`: the commands of the project, from any folder."""

import ast
import sys
from importlib import import_module
from pathlib import Path

from tmv_lib.pipeline.stage import PROJECT, run


def main() -> None:
    """Run the command that the first argument names, with the arguments after it; without one say which there are."""
    there = commands()
    if len(sys.argv) == 1 or sys.argv[1] in ("-h", "--help"):
        width = max(map(len, there))
        print(
            "\n".join(["usage: tmv <command> ...", "", *(f"  {name:{width}}  {does}" for name, does in there.items())])
        )
        return
    name = sys.argv[1]
    if name not in there:
        sys.exit(f"tmv: no command {name}; there are {', '.join(there)}")
    sys.argv[:2] = [f"tmv {name}"]
    sys.path.insert(0, str(PROJECT))
    run(lambda: start(name))


def commands() -> dict[str, str]:
    """The first line of each module of commands/, by its name."""
    return {file.stem: _first_line(file) for file in sorted((PROJECT / "commands").glob("[!_]*.py"))}


def start(name: str) -> None:
    """Run one command. Raises ValueError that says what to install where a package is missing."""
    try:
        command = import_module(f"commands.{name}")
    except ModuleNotFoundError as error:
        wanted = "pip install 'trustworthy-medical-vision[pipeline]'"
        raise ValueError(f"tmv {name} needs the package {error.name}: {wanted}") from None
    command.main()


def _first_line(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n")[0]


if __name__ == "__main__":
    main()

"""How a stage or command starts, and how it fails."""

import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

_LIBRARY = Path(__file__).parents[1]
_PACKAGED = _LIBRARY / "project"  # where the installed package has what lies beside the library in the repository
HERE = _LIBRARY if _PACKAGED.is_dir() else _LIBRARY.parent
PROJECT = _PACKAGED if _PACKAGED.is_dir() else HERE  # commands/, stages/ and the knobs as they come


def own_or_default(name: str) -> Path:
    """A file such as `params.yaml` of the current folder, or as it comes where the folder has none."""
    return Path(name) if Path(name).exists() else PROJECT / name


def run(main: Callable[[], None]) -> None:
    """Run a stage or command; whatever it raises is told in one line, with the place in this project that met it.

    Exit code 1; 130 when it is interrupted, 143 when it is asked to end, both after its temporary files are gone.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; training goes on from its last whole epoch when it is run again", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # the libraries raise errors of every kind on broken files and full disks
        sys.exit(f"error: {described(error)} [{place(error)}]")


def described(error: Exception) -> str:
    """What is wrong, on as many lines as there are problems; of an error of a library its kind as well."""
    text = str(error).strip() or "no more is known"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


def place(error: Exception) -> str:
    """File and line of this project that met the error."""
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    inside = [(file.relative_to(HERE), line) for file, line in frames if file.is_relative_to(HERE)]
    own = [(file, line) for file, line in inside if not file.parts[0].startswith(".")]
    file, line = own[-1] if own else frames[-1]
    return f"{file}:{line}"

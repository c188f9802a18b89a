"""How a stage or command starts, and how it fails."""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from tmv_lib.pipeline.params import read_yaml

_LIBRARY = Path(__file__).parents[1]
_PACKAGED = _LIBRARY / "project"  # where the installed package has what lies beside the library in the repository
HERE = _LIBRARY if _PACKAGED.is_dir() else _LIBRARY.parent
PROJECT = _PACKAGED if _PACKAGED.is_dir() else HERE  # commands/, stages/ and the knobs as they come


def own_or_default(name: str) -> Path:
    """A file such as `params.yaml` of the current folder, or as it comes where the folder has none."""
    return Path(name) if Path(name).exists() else PROJECT / name


def run(main: Callable[[], None]) -> None:
    """Run a stage or command; whatever it raises is told in one line, with the place in this project that met it.

    Under DVC a stage says its question first. Exit code 1; 130 when it is interrupted, 143 when it is asked to end,
    both after its temporary files are gone.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if question := asked():
            print(question, file=sys.stderr, flush=True)
        main()
    except KeyboardInterrupt:
        kept = (
            "what was finished is kept, of a training every whole epoch (checkpoints/); the same command goes on there"
        )
        print(f"\ninterrupted: {kept}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # the libraries raise errors of every kind on broken files and full disks
        sys.exit(f"error: {described(error)} [{place(error)}]{still_there(error)}")


def asked() -> str:
    """The stage of `dvc.yaml` that DVC runs, and its question; "" without DVC, and in a process beside the first."""
    stage = os.environ.get("DVC_STAGE", "").rpartition(":")[2]
    if not stage or "RANK" in os.environ or not Path("dvc.yaml").exists():
        return ""
    name, _, key = stage.partition("@")
    entry = read_yaml("dvc.yaml")["stages"].get(name, {})
    return f"{stage}: {entry.get('do', entry).get('desc', '').replace('${key}', key)}" if entry else ""


def still_there(error: Exception) -> str:
    """That a refused parameter stays in `params.yaml`, where `dvc exp run -S` has put it; "" where it was committed."""
    if not str(error).startswith("params.yaml: "):
        return ""
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "params.yaml"], capture_output=True, check=False)
    if changed.returncode != 1:
        return ""
    return "\nparams.yaml still holds it: change it there, or `git checkout params.yaml` takes all its changes back"


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

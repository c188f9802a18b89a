"""How a stage script starts, and how it fails."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def run(main: Callable[[], None]) -> None:
    """Run a stage; bad input is told in one line, with the place in this project that met it, and exit code 1."""
    try:
        main()
    except (ValueError, OSError) as error:
        here = Path(__file__).parents[2]
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if ".venv" not in frame.filename]
        place = [frame for frame in frames if Path(frame.filename).is_relative_to(here)][-1]
        sys.exit(f"error: {error} [{Path(place.filename).relative_to(here)}:{place.lineno}]")

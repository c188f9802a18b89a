"""How a stage script starts, and how it fails."""

import sys
import traceback
from collections.abc import Callable


def run(main: Callable[[], None]) -> None:
    """Run a stage; bad input (ValueError) is told in one line with the place that found it, and exit code 1."""
    try:
        main()
    except ValueError as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        sys.exit(f"error: {error} [{place.filename}:{place.lineno}]")

"""Several processes, on one machine or many, share the passes of a network: whole batches are dealt out.

Whole batches, since in another batch the last digits of an answer may be others: so any number of processes says the
same of every case, bit by bit. The number stands in neither params nor commands: one process a GPU, one where there is
none, and `TMV_PROCESSES` where somebody wants another number; or whatever started the stage (torchrun) says it.
Over several hosts `TMV_LAUNCHER` is what starts them: the words of a command that come before `-m stages.train`.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


def shared(main: Callable[[], None]) -> Callable[[], None]:
    """A stage that several processes run side by side: each does the same, but for the batches that are dealt out."""

    def start() -> None:
        count, launcher = wanted(), shlex.split(os.environ.get("TMV_LAUNCHER", ""))
        if "RANK" in os.environ:
            _join(main)
        elif launcher or count > 1:
            sys.exit(_launch(launcher or _on_this_host(count), count))
        else:
            main()

    return start


def wanted() -> int:
    """How many processes to start. Raises ValueError where `TMV_PROCESSES` is no whole number of at least 1."""
    said = os.environ.get("TMV_PROCESSES", str(max(1, torch.cuda.device_count())))
    if not said.isascii() or not said.isdigit() or int(said) < 1:
        raise ValueError(f"TMV_PROCESSES is {said!r}: a whole number of at least 1 is allowed")
    return int(said)


def _on_this_host(count: int) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-ranks-filter=0"]
    return [*torchrun, f"--nproc-per-node={count}"]


def _launch(launcher: list[str], count: int) -> int:
    stage = sys.modules["__main__"].__spec__
    assert stage is not None  # run with `python -m`
    threads = str(max(1, (os.cpu_count() or 1) // count))
    environment = {"OMP_NUM_THREADS": threads} | os.environ
    return subprocess.run([*launcher, "-m", stage.name, *sys.argv[1:]], env=environment).returncode


def _join(main: Callable[[], None]) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        main()
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """Which of the processes this is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """How many processes share the passes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def over(places: Sequence[T], one: Callable[[T], Any], *, progress: Callable[[Iterable[T]], Iterable[T]]) -> list[Any]:
    """[one(place) for place in places]: each process does its part, and all of them get the whole list."""
    own = [one(place) for place in progress(places[rank() :: count()])]
    if count() == 1:
        return own
    parts: list[Any] = [None] * count()
    distributed.all_gather_object(parts, own)
    return [parts[k % len(parts)][k // len(parts)] for k in range(len(places))]


def own_part(rows: np.ndarray) -> np.ndarray:
    """This process's part of the rows (n,) of a training batch, equally many for each.

    Raises ValueError where they cannot be equally many.
    """
    if len(rows) % count():
        raise ValueError(f"train.batch_size is {len(rows)}: {count()} processes need a multiple of {count()}")
    return rows[rank() :: count()]


def trained_together(model: nn.Module) -> nn.Module:
    """The model, whose gradients are the means over all processes."""
    return DistributedDataParallel(model) if count() > 1 else model


def as_the_first(model: nn.Module) -> None:
    """Give the model the weights and buffers of the first process: each has seen the statistics of other batches."""
    if count() > 1:
        for value in model.state_dict().values():
            distributed.broadcast(value, 0)


def by_the_first(context: Callable[[], AbstractContextManager[T]]) -> AbstractContextManager[T | None]:
    """A context that the first process alone enters; the others get None."""
    return context() if rank() == 0 else nullcontext()

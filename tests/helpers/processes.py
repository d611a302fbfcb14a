"""Start several processes of one training, as torchrun would, in forks of a process that has imported torch once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed

# Nothing that starts threads, and not pvae itself. torch imports torch._dynamo when it creates its first optimiser.
PRELOADED = ["torch", "torch._dynamo", "pyro", "pyro.infer", "pytest"]


class Group:
    """Processes that call one function each, with the environment variables of torchrun; `err` holds their stderr.

    Args:
        count: number of processes.
        function: a function of a module; what it returns is the exit status.
        arguments: of the function.
        folder: the working folder of the processes.
    """

    def __init__(self, count: int, function: Callable[..., Any], *arguments: Any, folder: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        # The store outlives each of the processes, as that of torchrun does.
        self.store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        place = {
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        self.logs = [(folder / f"out-{rank}.txt", folder / f"err-{rank}.txt") for rank in range(count)]
        self.processes: list[Any] = []
        for rank, logs in enumerate(self.logs):
            variables = {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            self.processes.append(
                context.Process(target=_run, args=(variables, folder, logs, function, arguments), daemon=True)
            )
            self.processes[-1].start()

    def wait_for(self, file: Path) -> None:
        """Wait until a file has content."""
        while not (file.exists() and file.read_bytes()):
            assert all(process.is_alive() for process in self.processes), self.err
            time.sleep(0.02)

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to one process."""
        os.kill(self.processes[rank].pid, number)

    def join(self, seconds: float = 300) -> list[int]:
        """Wait for the processes, and return their exit statuses."""
        ends = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, ends - time.monotonic()))
            process.kill()
            process.join()
        return [process.exitcode for process in self.processes]

    @property
    def out(self) -> str:
        """What the processes printed on standard output, in order of rank."""
        return "".join(out.read_text() for out, _ in self.logs if out.exists())

    @property
    def err(self) -> str:
        """What the processes printed on standard error, in order of rank."""
        return "".join(err.read_text() for _, err in self.logs if err.exists())


def run_group(count: int, function: Callable[..., Any], *arguments: Any, folder: Path) -> str:
    """Run a function in several processes, and return what they printed; they must end with status 0."""
    group = Group(count, function, *arguments, folder=folder)
    assert group.join() == [0] * count, group.err
    return group.out


def _run(
    variables: dict[str, str],
    folder: Path,
    logs: tuple[Path, Path],
    function: Callable[..., Any],
    arguments: Sequence[Any],
) -> None:
    os.chdir(folder)
    os.environ.update(variables)
    for number, log in enumerate(logs, 1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), number)
    status = 99
    try:
        status = int(function(*arguments) or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # as the commands do: threads of torch.distributed may abort a process that clears up

"""Kernels forked from a process that has loaded the libraries: each starts in a second.

A kernel that imports torch, transformers and seaborn itself takes 5 to 15 seconds, longer than most
notebooks of `ci` run. The forked process, Python's fork server, imports libraries but no code of
this project, and does not use a GPU. Variables that a library reads when it is loaded, such as
OMP_NUM_THREADS, keep the values that they had when the fork server started.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

LOADED = [  # IPython last: libraries loaded after it would make tqdm look for widgets
    "torch",
    "transformers.modeling_utils",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "peft",
    "scipy.optimize",
    "scipy.stats",
    "seaborn",
    "ipykernel.kernelapp",
]
GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, AMD, Windows
FORKS = multiprocessing.get_context("forkserver") if sys.platform == "linux" else None


def manager() -> type[AsyncKernelManager]:
    """The kernel manager: it forks on Linux if the machine has no GPU."""
    return ForkingManager if _can_fork() else AsyncKernelManager


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """Runs a function in another process, so that this process does not load the libraries."""
    if not _can_fork():
        return work(*given)
    with ProcessPoolExecutor(1, mp_context=FORKS) as pool:
        return pool.submit(work, *given).result()


def _can_fork() -> bool:
    if FORKS is None or any(Path(device).exists() for device in GPUS):
        return False
    FORKS.set_forkserver_preload(LOADED)
    return True


class ForkingManager(AsyncKernelManager):
    """Starts its kernel by a fork."""

    async def start_kernel(self, **options: Any) -> None:
        self.provisioner = Forking(kernel_id="forked", kernel_spec=self.kernel_spec, parent=self)
        await super().start_kernel(**options)


class Forking(LocalProvisioner):
    """Launches a kernel as a process of `multiprocessing`, not of `subprocess`."""

    async def launch_kernel(self, cmd: list[str], **options: Any) -> dict[str, Any]:
        given = self.parent.connection_file, os.getcwd(), options["env"]
        self.process = Kernel(target=_work, args=given, daemon=True)
        self.process.start()
        self.pid = self.pgid = self.process.pid  # the group that _work begins
        return self.connection_info


class Kernel(FORKS.Process if FORKS else object):
    """A process with the methods that LocalProvisioner needs."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self) -> int | None:
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _work(connection_file: str, folder: str, variables: dict[str, str]) -> None:
    """A kernel, from its start to its end."""
    import matplotlib
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()  # an interrupt at the terminal reaches only the runner
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    matplotlib.rcParams["backend"] = os.environ["MPLBACKEND"]  # it was loaded before that was set
    multiprocessing.current_process()._config["daemon"] = False  # cells may start processes
    sys.path[:] = [entry for entry in sys.path if entry]
    threading.Thread(target=_end_with_runner, daemon=True).start()
    IPKernelApp.launch_instance(argv=["-f", connection_file], parent_handle=os.getppid())


def _end_with_runner() -> None:
    multiprocessing.parent_process().join()  # the runner, not the fork server between them
    os._exit(1)

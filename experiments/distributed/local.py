"""Several processes of one module on this machine, as a cluster would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import jax

# Where a process finds its place among those that `start` started.
ADDRESS, COUNT, INDEX = "LOCAL_ADDRESS", "LOCAL_PROCESSES", "LOCAL_PROCESS"


def join() -> None:
    """Join the other processes, where there are any: local ones, a TPU pod's, those of Slurm.

    JAX itself finds out who the others are on a cluster that it knows.
    """
    if ADDRESS in os.environ:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            os.environ[ADDRESS], int(os.environ[COUNT]), int(os.environ[INDEX]),
            heartbeat_timeout_seconds=30,
        )  # fmt: skip
    elif "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") or (
        int(os.environ.get("SLURM_NTASKS", "1")) > 1
    ):
        jax.distributed.initialize()


def start(
    count: int, command: Sequence[str], devices: int = 1, **options: object
) -> list[subprocess.Popen[str]]:
    """Start `python -m command...` as `count` processes of `devices` virtual CPU devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    each = {**os.environ, "XLA_FLAGS": flags, ADDRESS: address, COUNT: str(count)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *command], env={**each, INDEX: str(index)}, text=True,
            **options,  # type: ignore[call-overload]
        )
        for index in range(count)
    ]  # fmt: skip


def wait(processes: list[subprocess.Popen[str]], grace: float = 60.0) -> int:
    """Wait for all; once one has failed the others have `grace` seconds. The worst exit status."""
    failed_at: float | None = None
    while any(process.poll() is None for process in processes):
        codes = [process.poll() for process in processes]
        if failed_at is None and any(codes):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > grace:
            for process in processes:
                process.kill()
        time.sleep(0.1)
    ends = [process.wait() for process in processes]
    return next((code for code in ends if code > 0), next((1 for code in ends if code), 0))

"""The processes a supervisor starts: leashed, out of the terminal's Ctrl-C, with a clean environment."""

import asyncio
import os
from collections.abc import Mapping, Sequence

from hetero_infer.spec import HeteroInferError
from hetero_infer.supervisor.leash import leashed
from hetero_infer.supervisor.say import STDERR

LAUNCHER_PREFIXES = ("OMPI_", "PMIX_", "PMI_", "ORTE_")
LAUNCHER_NAMES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"}
LAUNCHER_NAMES |= {"CROSS_RANK", "CROSS_SIZE"}


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Without what the launcher said to the supervisor: it is not true for its children."""
    return {
        name: value
        for name, value in environ.items()
        if name not in LAUNCHER_NAMES and not name.startswith(LAUNCHER_PREFIXES)
    }


async def start_child(
    command: Sequence[str], environment: Mapping[str, str], pass_fds: tuple[int, ...] = ()
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *leashed(list(command)),
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=STDERR,
        pass_fds=pass_fds,
        process_group=0,
    )


async def end_child(process: asyncio.subprocess.Process, terminate_s: float) -> None:
    """SIGTERM, and SIGKILL if it is still there after `terminate_s`."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), terminate_s)
    except TimeoutError:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def run_child(command: Sequence[str], what: str, terminate_s: float) -> None:
    """Run to the end; 2 (bad input) and 3 (infeasible) become our own exit code. Cancelled, it ends the child."""
    process = await start_child(command, clean_environment(os.environ))
    try:
        exit_code = await process.wait()
    finally:
        await end_child(process, terminate_s)
    if exit_code:
        error = HeteroInferError(f"{what} ended with exit code {exit_code}")
        error.exit_code = exit_code if exit_code in (2, 3) else 1
        raise error

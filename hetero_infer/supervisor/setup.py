"""`Setup`: what every supervisor of a run is told at its start: the files, the programs, the patience."""

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Commands:
    """The beginnings of three command lines; what the run decides is appended."""

    plan: tuple[str, ...] = (sys.executable, "-m", "hetero_infer", "plan", "--hold")
    quantize: tuple[str, ...] = (sys.executable, "-m", "hetero_infer", "quantize")
    worker: tuple[str, ...] = (sys.executable, "-m", "hetero_infer.pipeline.worker")


@dataclass(frozen=True)
class Limits:
    """`loading_silence_s` holds until a worker is ready: importing and loading may keep its threads from speaking."""

    join_s: float = 60
    silence_s: float = 6
    loading_silence_s: float = 60
    settle_s: float = 0.3
    terminate_s: float = 2
    stop_s: float = 5


@dataclass(frozen=True)
class Setup:
    """Without `plan`, rank 0 makes one from `config`. A survey has none: every slot of the hostfile gets a worker."""

    config: Path
    plan: Path | None = None
    commands: Commands = Commands()
    limits: Limits = Limits()
    is_survey: bool = False

"""Run cases over a pipeline of real processes, one per stage, with a deadline; none outlives its test."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hetero_infer.spec import UNQUANTISED, Choice, Device, Plan, StagePlan, Workload
from hetero_infer.spec.sampling import Sampling
from hetero_infer.supervisor.leash import leashed
from tests.supervisor.running import free_port

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Request:
    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: tuple[int, ...] = ()
    cancel_after: int = -1


@dataclass(frozen=True)
class Case:
    """`batches` are generated one after the other by the same engine."""

    name: str
    plan: Plan
    folder: Path
    batches: Sequence[Sequence[Request]]
    checkpoint: Path | None = None


@dataclass
class Ran:
    """What the first stage reports, and what any stage failed with."""

    batches: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)


def uneven_sizes(num_layers: int, stages: int) -> tuple[int, ...]:
    """Layers per stage; embedding and head alone on theirs where there are four."""
    rest = num_layers - 4
    return {1: (num_layers,), 2: (2, rest + 2), 3: (rest, 3, 1), 4: (1, 1, rest + 1, 1)}[stages]


def plan_of(
    stages: int,
    workload: Workload,
    sizes: tuple[int, int],
    decoder_choices: Sequence[Choice],
    memory_bytes: int = 2**30,
    digest: str = "",
    ends: tuple[Choice, Choice] = (UNQUANTISED, UNQUANTISED),
) -> Plan:
    """A plan made by hand; `sizes` are those of prefill and decode micro-batches, `ends` embedding and head."""
    devices = tuple(Device("localhost", slot, "cpu", memory_bytes) for slot in range(stages))
    choices = iter((ends[0], *decoder_choices, ends[1]))
    return Plan(
        model={"path": "", "digest": digest, "num_hidden_layers": len(decoder_choices)},
        devices=devices,
        workload=workload,
        stages=tuple(
            StagePlan(device.name, tuple(next(choices) for _ in range(count)))
            for device, count in zip(devices, uneven_sizes(len(decoder_choices) + 2, stages), strict=True)
        ),
        prefill_micro_batch_size=sizes[0],
        decode_micro_batch_size=sizes[1],
    )


def run_pipeline(stages: int, cases: Sequence[Case], folder: Path, deadline_s: float) -> dict[str, Ran]:
    """All cases inside the same processes, which saves their start; by name."""
    entries = []
    for number, case in enumerate(cases):
        plan_path = folder / f"plan-{number}.json"
        case.plan.save(plan_path)
        batches = [[asdict(request) for request in batch] for batch in case.batches]
        checkpoint = str(case.checkpoint) if case.checkpoint else None
        entry = {"plan": str(plan_path), "folder": str(case.folder), "checkpoint": checkpoint, "batches": batches}
        entries.append(entry)
    (folder / "cases.json").write_text(json.dumps(entries))
    place = {"WORLD_SIZE": str(stages), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [_start(folder, stage, os.environ | place) for stage in range(stages)]
    try:
        _wait(processes, folder, deadline_s)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    results = [json.loads((folder / f"results-{stage}.json").read_text()) for stage in range(stages)]
    assert [result["imported"] for result in results] == [[]] * stages, "the runtime imported what it does without"
    return {case.name: _gather([result["results"][n] for result in results]) for n, case in enumerate(cases)}


def _start(folder: Path, stage: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    arguments = [str(folder / "cases.json"), str(stage), str(folder / f"results-{stage}.json")]
    with (folder / f"said-{stage}").open("wb") as said:
        return subprocess.Popen(
            leashed([sys.executable, "-m", "tests.pipeline.stage_process", *arguments]),
            env=environment | {"RANK": str(stage), "LOCAL_RANK": str(stage)},
            cwd=ROOT,
            stdout=said,
            stderr=said,
        )


def _wait(processes: list[subprocess.Popen[bytes]], folder: Path, deadline_s: float) -> None:
    began = time.monotonic()
    while not all(process.poll() == 0 for process in processes):
        failed = [stage for stage, process in enumerate(processes) if process.poll()]
        is_late = time.monotonic() - began > deadline_s
        if failed or is_late:
            said = "\n".join(f"stage {n}: {(folder / f'said-{n}').read_text()}" for n in range(len(processes)))
            raise AssertionError(f"{'late' if is_late else f'stages {failed} failed'}:\n{said}")
        time.sleep(0.05)


def _gather(of_stages: list[dict[str, Any]]) -> Ran:
    errors = {stage: result["error"] for stage, result in enumerate(of_stages) if "error" in result}
    return Ran(of_stages[0].get("batches", []), errors)

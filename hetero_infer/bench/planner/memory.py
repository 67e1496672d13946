"""Memory predicted beside measured: the product's own workers hold stages of more than a GiB and run full batches.

Each case is a pipeline of random weights over processes of this machine. A worker's peak is its resident memory less
what it had after its imports, from loading over a warm-up batch to the end of a batch of the planned lengths.
"""

import asyncio
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

from hetero_infer.bench.planner.random_model import DIGEST, write_random_model
from hetero_infer.bench.section import Demand, Section
from hetero_infer.cost.memory import PROCESS_BYTES, plan_memory
from hetero_infer.spec import UNQUANTISED, Choice, Device, HeteroInferError, Plan, Workload
from hetero_infer.spec.plan import StagePlan
from hetero_infer.spec.sampling import Sampling
from hetero_infer.supervisor.setup import Commands, Limits
from hetero_infer.supervisor.worker import Worker, worker_environment

MIB, GIB = 2**20, 2**30
LEAST_RATIO = 0.97
HERE = "127.0.0.1"
RUN = """
[model]
path = "{folder}/model"
[cluster]
hostfile = "{folder}/hostfile"
[workload]
batch_size = {batch_size}
prompt_tokens = {prompt_tokens}
new_tokens = {new_tokens}
[paths]
checkpoint = "{folder}/checkpoint"
"""
LLAMA_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
}
TINY_LLAMA = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
LLAMA_3_1B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
QWEN_3 = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
OPT_3B = {
    "model_type": "opt",
    "vocab_size": 50272,
    "hidden_size": 2560,
    "ffn_dim": 10240,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}
BLOOM_560M = {"model_type": "bloom", "vocab_size": 250880, "hidden_size": 1024, "n_head": 16}


@dataclass(frozen=True)
class Case:
    """`bits[stage]` are those of its decoder layers."""

    model: str
    config: Mapping[str, Any]
    bits: Sequence[Sequence[int]]
    workload: Workload
    prefill_size: int
    decode_size: int

    @property
    def plan(self) -> Plan:
        decoders = [Choice(bits, 64 if bits < 16 else 0) for bits in chain.from_iterable(self.bits)]
        choices = [UNQUANTISED, *decoders, UNQUANTISED]
        ends = list(accumulate(map(len, self.bits)))
        bounds = pairwise([0, *(end + 1 for end in ends[:-1]), len(choices)])
        devices = tuple(Device("localhost", slot, "cpu", 64 * GIB) for slot in range(len(self.bits)))
        return Plan(
            model={"path": self.model, "digest": DIGEST, "num_hidden_layers": len(decoders)},
            devices=devices,
            workload=self.workload,
            stages=tuple(
                StagePlan(device.name, tuple(choices[start:stop]))
                for device, (start, stop) in zip(devices, bounds, strict=True)
            ),
            prefill_micro_batch_size=self.prefill_size,
            decode_micro_batch_size=self.decode_size,
        )


CASES = (
    Case("Llama 7B", LLAMA_7B, [[4] * 3, [8, 4]], Workload(4, 62, 3), 2, 4),
    Case("Llama 7B", LLAMA_7B, [[16], [16], [16]], Workload(2, 300, 2), 1, 2),
    Case("TinyLlama", TINY_LLAMA, [[16] * 5, [16, 8, 8, 4, 16, 16, 16]], Workload(8, 126, 3), 4, 4),
    Case("Llama 3 1B", LLAMA_3_1B, [[3] * 3, [8, 4, 3]], Workload(4, 255, 2), 2, 2),
    Case("OPT 3B", OPT_3B, [[8] * 4 + [16], [4, 16, 16]], Workload(6, 100, 3), 3, 6),
    Case("BLOOM 560M", BLOOM_560M, [[16] * 2, [8] * 2], Workload(16, 40, 3), 8, 16),
    Case("Qwen 3", QWEN_3, [[16] * 8 + [4] * 8], Workload(6, 380, 4), 2, 6),
)


@dataclass(frozen=True)
class Measured:
    """A stage of a case; MiB of the plan for it, of the process besides, and of the process at its peak."""

    case: Case
    stage: int
    planned_bytes: int
    peak_bytes: int

    @property
    def ratio(self) -> float:
        return self.peak_bytes / (self.planned_bytes + PROCESS_BYTES)

    @property
    def cells(self) -> tuple[str, ...]:
        plan, load = self.case.plan, self.case.workload
        return (
            self.case.model,
            f"{self.stage + 1} of {len(plan.stages)}",
            _bits(self.case.bits[self.stage]),
            str(load.batch_size),
            f"{load.prompt_tokens}+{load.new_tokens}",
            f"{plan.prefill_micro_batch_size}/{plan.decode_micro_batch_size}",
            f"{self.planned_bytes / MIB:.1f}",
            f"{(self.planned_bytes + PROCESS_BYTES) / MIB:.1f}",
            f"{self.peak_bytes / MIB:.1f}",
            f"{self.ratio:.3f}",
        )


def measure(shared: Path) -> Section:
    """Nothing of `shared` is needed."""
    found = [stage for case in CASES for stage in measure_case(case)]
    large = [stage for stage in found if stage.peak_bytes >= GIB]
    ratios = [stage.ratio for stage in large]
    return Section(
        title="Memory: predicted beside the measured peak of real workers",
        header=("model", "stage", "bits", "batch", "tokens", "η/ξ", "plan MiB", "predicted", "measured", "ratio"),
        rows=[stage.cells for stage in found],
        demands=(
            Demand(f"{len(large)} workers hold a GiB or more (at least 8)", len(large) >= 8),
            Demand(f"measured is at least {min(ratios):.3f} of predicted ({LEAST_RATIO})", min(ratios) >= LEAST_RATIO),
            Demand(f"measured is at most {max(ratios):.3f} of predicted (never under)", max(ratios) <= 1),
        ),
        notes=(
            f"Predicted: the plan's bytes and {PROCESS_BYTES // MIB} MiB of the process. Measured: peak resident memory"
            " of each worker less what it held after its imports. Weights are random, elements float32.",
        ),
        facts=[
            {"cells": stage.cells, "planned_bytes": stage.planned_bytes, "peak_bytes": stage.peak_bytes}
            for stage in found
        ],
    )


def measure_case(case: Case) -> list[Measured]:
    """Weights, plan and config in a temporary folder, which is gone afterwards."""
    plan = case.plan
    layers = "n_layer" if case.config["model_type"] == "bloom" else "num_hidden_layers"
    config = {**case.config, layers: plan.model["num_hidden_layers"]}
    with tempfile.TemporaryDirectory(prefix="hetero-infer-memory-") as name:
        folder = Path(name)
        spec = write_random_model(folder / "model", folder / "checkpoint", config, plan.decoder_choices)
        plan.save(folder / "plan.json")
        (folder / "run.toml").write_text(RUN.format(folder=folder, **asdict(case.workload)))
        peaks = asyncio.run(_peaks(plan, folder))
    memory = plan_memory(spec, plan)
    return [Measured(case, stage, memory[stage].total, peak) for stage, peak in enumerate(peaks)]


async def _peaks(plan: Plan, folder: Path) -> list[int]:
    """Run one batch of the plan's lengths; bytes of each stage's worker."""
    port = _free_port()
    files = ["--plan", str(folder / "plan.json"), "--config", str(folder / "run.toml")]
    workers = [
        await Worker.start(
            [*Commands().worker, *files, "--device", plan.stages[stage].device],
            worker_environment(stage, len(plan.stages), plan.device_of(stage), HERE, port, HERE),
            Limits(silence_s=60),
        )
        for stage in range(len(plan.stages))
    ]
    peaks: dict[int, int] = {}

    async def watch(stage: int) -> None:
        def hear(event: dict[str, Any]) -> None:
            match event["event"]:
                case "ready" if stage == 0:
                    workers[0].send(_full_batch(plan.workload))
                case "batch_done":
                    workers[0].send({"command": "shutdown"})
                case "peak_memory":
                    peaks[stage] = event["num_bytes"]

        end = await workers[stage].watch(hear)
        if stage not in peaks:  # the last that a worker says
            raise HeteroInferError(f"the worker of stage {stage} {end.what}")

    try:
        await asyncio.gather(*map(watch, range(len(workers))))
    finally:
        for worker in workers:
            await worker.end()
    return [peaks[stage] for stage in range(len(workers))]


def _full_batch(workload: Workload) -> dict[str, Any]:
    request = {"prompt": [1] * workload.prompt_tokens, "max_tokens": workload.new_tokens, "stop_ids": []}
    sampling = asdict(Sampling())
    requests = [{"id": number, "sampling": sampling, **request} for number in range(workload.batch_size)]
    return {"command": "generate", "requests": requests}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HERE, 0))
        return int(probe.getsockname()[1])


def _bits(bits: Sequence[int]) -> str:
    return " ".join(f"{bits.count(value)}×{value}" for value in sorted(set(bits)))

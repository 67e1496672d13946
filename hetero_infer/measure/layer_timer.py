"""Seconds of one layer on this machine's device: choice by phase by batch by length, with random weights.

A point is the median of repeated passes over one micro-batch, collected in several sweeps over the grid, so that other
work on the machine disturbs few of its samples. Choices take turns, so that drift hits all alike, and each pass takes
the next of several copies of the layer, as a stage does, so that caches are not hotter than they will be. What a stage
makes once per micro-batch (positions, rotary tables) is not counted.
"""

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date

import torch
from torch import nn
from tqdm import tqdm

from hetero_infer.cost.latency import ProfiledLatency
from hetero_infer.measure.local_devices import cpu_name, cuda_devices
from hetero_infer.measure.neighbours import working_neighbours
from hetero_infer.models import KVCache, MicroBatch, layers_of
from hetero_infer.models.micro_batch import pad_rows
from hetero_infer.quant.linear import QuantLinear
from hetero_infer.spec import UNQUANTISED, Choice, InputError, ModelSpec, Phase, ProfileRow, ProfileTable, Workload
from hetero_infer.spec.profile import EMBEDDING, HEAD

NUM_COPIES = 3
NUM_SWEEPS = 3
WARM_UPS = 1  # these and the rest per sweep, point and choice
MIN_REPETITIONS = 2
ENOUGH_S = 0.02
AT_MOST_S = 0.13


@dataclass(frozen=True)
class Point:
    """A micro-batch to time: `batch` sequences, each with `input_tokens` new rows after `past_tokens`."""

    phase: Phase
    batch: int
    input_tokens: int
    past_tokens: int

    def micro_batch(self, device: torch.device) -> MicroBatch:
        slots = tuple(range(self.batch))
        return MicroBatch(
            self.phase, slots, (self.past_tokens,) * self.batch, (self.input_tokens,) * self.batch, device
        )


def grid(workload: Workload) -> list[Point]:
    """Batches 1, 2, 4, … and B; prompts of half and full length; a past of the prompt and of all."""
    doubling = {2**power for power in range(workload.batch_size.bit_length())}
    batches = sorted(doubling | {workload.batch_size})
    prompts = sorted({max(1, workload.prompt_tokens // 2), workload.prompt_tokens})
    pasts = sorted({workload.prompt_tokens, workload.cache_tokens})
    return [Point(Phase.PREFILL, batch, prompt, 0) for batch in batches for prompt in prompts] + [
        Point(Phase.DECODE, batch, 1, past) for batch in batches for past in pasts
    ]


def measure_layers(
    spec: ModelSpec,
    model_name: str,
    device_type: str,
    choices: Sequence[Choice],
    workload: Workload,
    threads: int,
    neighbours: int = 0,
    slot: int | None = None,
    progress: bool = False,
    *,
    embedding_choices: Sequence[Choice] = (UNQUANTISED,),
    head_choices: Sequence[Choice] = (UNQUANTISED,),
) -> ProfileTable:
    """Time a decoder layer, the embedding and the head, each under each of its choices, over the grid of `workload`.

    `device_type` is a `Device.timed_as`, `slot` which CUDA device of this host, if it is known. `neighbours` is how
    many other devices of this CPU work at the same time when the plan runs. The header says how well every second point
    is predicted by the others.
    """
    device = _device_here(device_type, slot)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    num_copies = min(NUM_COPIES, spec.num_hidden_layers)
    with _threads(threads), working_neighbours(neighbours), torch.inference_mode():
        stacks = {
            choice: [random_layer(spec, 1 + copy, choice, dtype, device) for copy in range(num_copies)]
            for choice in choices
        }
        embeddings = {choice: random_layer(spec, 0, choice, dtype, device) for choice in embedding_choices}
        heads = {choice: random_layer(spec, -1, choice, dtype, device) for choice in head_choices}
        cache = KVCache(
            range(num_copies),
            workload.batch_size,
            workload.cache_tokens + 1,
            spec.num_key_value_heads,
            spec.head_dim,
            dtype,
            device,
        )
        points = grid(workload)
        samples: dict[tuple[Point, str, Choice], list[float]] = defaultdict(list)
        for point in tqdm(points * NUM_SWEEPS, desc="measure", unit="point", disable=None if progress else True):
            batch = point.micro_batch(device)
            token_ids = torch.randint(spec.vocab_size, (batch.padded_rows,), device=device)
            hidden = torch.randn(batch.padded_rows, spec.hidden_size, dtype=dtype, device=device)
            ways: dict[tuple[Point, str, Choice], list[Callable[[], object]]] = {
                (point, model_name, choice): [_pass(layer, hidden, batch, cache) for layer in stack]
                for choice, stack in stacks.items()
            }
            for choice, embedding in embeddings.items():
                ways[point, f"{model_name}#{EMBEDDING}", choice] = [_pass(embedding, token_ids, batch, cache)]
            for choice, head in heads.items():
                ways[point, f"{model_name}#{HEAD}", choice] = [_greedy_pass(head, hidden, batch, cache)]
            for key, seconds in zip(ways, _seconds_in_turns(list(ways.values()), device), strict=True):
                samples[key] += seconds
    rows = [
        _row(spec, device_type, name, choice, point, statistics.median(seconds))
        for (point, name, choice), seconds in samples.items()
    ]
    facts = _header(threads, num_copies, dtype, device) | {"neighbours": str(neighbours)}
    header = {f"{device_type}.{key}": value for key, value in facts.items()}
    holdout = ProfiledLatency(ProfileTable(tuple(rows)), model_name).holdout(device_type)
    return ProfileTable(tuple(rows), header | (holdout.header(device_type) if holdout else {}))


def _device_here(device_type: str, slot: int | None) -> torch.device:
    """This machine's device of a type: the CPU, or a CUDA device under whatever name the hostfile gives it. Without a
    slot the first whose driver calls it so, else the first."""
    if device_type.startswith("cpu"):
        return torch.device("cpu")
    found = [device.type for device in cuda_devices()]
    if slot is None:
        slot = found.index(device_type) if device_type in found else 0
    if len(found) <= slot:
        raise InputError(f"no CUDA device {slot} here to measure as {device_type}; run it on a host that has one")
    return torch.device("cuda", slot)


def random_layer(spec: ModelSpec, position: int, choice: Choice, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A layer with weights of a plausible size: what they are does not matter to the clock."""
    with torch.device(device):
        module = layers_of(spec)[position].build(choice).requires_grad_(False)
    for parameter in module.parameters():  # buffers of quantised Linears keep their types
        parameter.data = parameter.data.to(dtype)
    for part in module.modules():
        if isinstance(part, QuantLinear):
            part.qweight.random_()
            part.qzeros.random_()
            part.scales.fill_(0.02 / 2**choice.bits)
            part.g_idx.copy_(torch.arange(part.in_features, device=device) // choice.group_size)
        elif isinstance(part, nn.Linear | nn.Embedding):
            part.weight.normal_(std=0.02)
    return module


def _pass(layer: nn.Module, x: torch.Tensor, batch: MicroBatch, cache: KVCache) -> Callable[[], object]:
    return lambda: layer(x, batch, cache)


def _greedy_pass(head: nn.Module, hidden: torch.Tensor, batch: MicroBatch, cache: KVCache) -> Callable[[], object]:
    """The newest row of each sequence through the head, and its most likely token."""
    return lambda: head(pad_rows(hidden[batch.last_rows]), batch, cache).argmax(-1)


def _seconds_in_turns(ways: Sequence[Sequence[Callable[[], object]]], device: torch.device) -> list[list[float]]:
    """Of each pass of each way. The ways take turns; each goes through its copies in turn."""
    samples: list[list[float]] = [[] for _ in ways]
    unfinished = list(zip(ways, samples, strict=True))
    repetition = -WARM_UPS
    while unfinished:
        for copies, taken in unfinished:
            _synchronise(device)
            start = time.perf_counter()
            copies[repetition % len(copies)]()
            _synchronise(device)
            if repetition >= 0:
                taken.append(time.perf_counter() - start)
        unfinished = [(copies, taken) for copies, taken in unfinished if not _suffices(taken)]
        repetition += 1
    return samples


def _suffices(seconds: Sequence[float]) -> bool:
    return (len(seconds) >= MIN_REPETITIONS and sum(seconds) >= ENOUGH_S) or sum(seconds) >= AT_MOST_S


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _row(spec: ModelSpec, device_type: str, name: str, choice: Choice, point: Point, seconds: float) -> ProfileRow:
    return ProfileRow(
        device=device_type,
        model=name,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        bits=choice.bits,
        group_size=choice.group_size,
        activations=choice.activations,
        phase=point.phase,
        batch=point.batch,
        input_tokens=point.input_tokens,
        past_tokens=point.past_tokens,
        seconds=seconds,
    )


def _header(threads: int, num_copies: int, dtype: torch.dtype, device: torch.device) -> dict[str, str]:
    return {
        "date": date.today().isoformat(),
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": str(threads),
        "cores": str(os.cpu_count() or 1),
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "copies": str(num_copies),
    }

"""Seconds of decoder layers that others measured and published, as profiles and as the latency models made from them.

Helix (ASPLOS '25): Llama-2-70B in fp16 on T4, L4, V100 and A100. LLM-PQ (PPoPP '24): OPT-30B on T4 and V100, and a
few points on P100. Neither measured embedding or head: those are from the spec sheet.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetero_infer.bench.planner.cases import big_model
from hetero_infer.cost.latency import LayerKind, ProfiledLatency, Source
from hetero_infer.cost.roofline import RooflineLatency
from hetero_infer.spec import UNQUANTISED, Choice, Device, Phase, ProfileRow, ProfileTable
from hetero_infer.spec.choice import DEFAULT_GROUP_SIZE
from hetero_infer.spec.profile import DECODER

HELIX_MODEL, LLM_PQ_MODEL = "llama-2-70b", "opt-30b"
HELIX_TYPES = {"t4": "t4", "l4": "l4", "v100": "v100-16", "a100": "a100-40"}  # by their folders
LLM_PQ_TYPES = {"Tesla_T4": "t4", "Tesla_V100-SXM2-32GB": "v100-32", "Tesla_P100-PCIE-12GB": "p100-12"}
INT8 = "8:tc-li"  # bitsandbytes
LLM_PQ_TOKENS = 512  # of their prompts, and of the past in decode

Sizes = tuple[int, int, int]  # batch, input tokens, past tokens


@dataclass(frozen=True)
class PublishedLatency:
    """A `LatencyModel` whose decoder layers are asked for at `as_measured` of a phase and its sizes."""

    measured: ProfiledLatency
    spec_sheet: RooflineLatency
    as_measured: Callable[[Phase, int, int, int], Sizes]

    def allowed_choices(
        self, device: Device, choices: Iterable[Choice], kind: LayerKind = "decoder"
    ) -> tuple[Choice, ...]:
        model = self.measured if kind == DECODER else self.spec_sheet
        return model.allowed_choices(device, choices)

    def layer_seconds(
        self,
        device: Device,
        kind: LayerKind,
        choice: Choice,
        phase: Phase,
        batch: int,
        input_tokens: int,
        past_tokens: int,
    ) -> float:
        sizes = batch, input_tokens, past_tokens
        if kind == DECODER:
            return self.measured.layer_seconds(device, kind, choice, phase, *self.as_measured(phase, *sizes))
        return self.spec_sheet.layer_seconds(device, kind, choice, phase, *sizes)

    def source(self, device: Device) -> Source:
        return self.measured.source(device)


def helix_latency(shared: Path) -> PublishedLatency:
    """Their prefill counts the tokens of the whole batch; their decode does not say how long the past was."""

    def as_measured(phase: Phase, batch: int, input_tokens: int, past_tokens: int) -> Sizes:
        return (1, batch * input_tokens, 0) if phase is Phase.PREFILL else (batch, 1, 0)

    return _published(helix_rows(shared), HELIX_MODEL, as_measured)


def llm_pq_latency(shared: Path) -> PublishedLatency:
    """Decode costs what it costs after 512 tokens: they measured no other past."""

    def as_measured(phase: Phase, batch: int, input_tokens: int, past_tokens: int) -> Sizes:
        return batch, input_tokens, min(past_tokens, LLM_PQ_TOKENS)

    return _published(_llm_pq_rows(shared), LLM_PQ_MODEL, as_measured)


def _published(
    rows: Iterable[ProfileRow], model: str, as_measured: Callable[[Phase, int, int, int], Sizes]
) -> PublishedLatency:
    measured = ProfiledLatency(ProfileTable(tuple(rows)), model)
    return PublishedLatency(measured, RooflineLatency(big_model(model)), as_measured)


def helix_rows(shared: Path) -> Iterator[ProfileRow]:
    for folder, device in HELIX_TYPES.items():
        for phase, name in ((Phase.PREFILL, "prompt"), (Phase.DECODE, "decode")):
            file = shared / f"data/profiles/helix_llama2_70b/{folder}/{name}_bs2time.csv"
            for line in file.read_text().split():
                size, milliseconds = line.split(",")
                sizes = (1, int(size), 0) if phase is Phase.PREFILL else (int(size), 1, 0)
                if int(size):  # every file begins with nothing, in no time
                    yield _row(HELIX_MODEL, device, UNQUANTISED, phase, sizes, float(milliseconds) / 1e3)


def _llm_pq_rows(shared: Path) -> Iterator[ProfileRow]:
    """The first of each point: the one measured together with the other device's. A lone one at 128 tokens is left
    out: beside three at 512 it does not say what a sequence costs and what a token."""
    seen = set()
    with (shared / "data/llm_pq/layer_latency_opt30b.csv").open() as file:
        for entry in csv.DictReader(file):
            bits = 8 if entry["bit"] == INT8 else int(entry["bit"])
            choice = Choice(bits, DEFAULT_GROUP_SIZE) if bits < 16 else UNQUANTISED
            sizes = int(entry["batch"]), int(entry["input_seq"]), int(entry["past_seq"])
            device, phase = LLM_PQ_TYPES[entry["device"]], Phase(entry["phase"])
            if (device, choice, phase, sizes) not in seen and LLM_PQ_TOKENS in sizes:
                seen.add((device, choice, phase, sizes))
                seconds = float(entry["latency_ms_per_decoder_layer"]) / 1e3
                yield _row(LLM_PQ_MODEL, device, choice, phase, sizes, seconds)


def _row(model: str, device: str, choice: Choice, phase: Phase, sizes: Sizes, seconds: float) -> ProfileRow:
    spec = big_model(model)
    shape: dict[str, Any] = {"hidden_size": spec.hidden_size, "intermediate_size": spec.intermediate_size}
    stored = {"bits": choice.bits, "group_size": choice.group_size, "activations": choice.activations}
    batch, input_tokens, past_tokens = sizes
    return ProfileRow(
        device=device,
        model=model,
        **shape,
        **stored,
        phase=phase,
        batch=batch,
        input_tokens=input_tokens,
        past_tokens=past_tokens,
        seconds=seconds,
    )

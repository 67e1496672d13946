"""`GenerationBatch`: the sequences of a batch as the first stage knows them. The other stages know only messages."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from hetero_infer.models import MicroBatch
from hetero_infer.pipeline.message import Message
from hetero_infer.pipeline.sampling import Sampling
from hetero_infer.spec import Phase
from hetero_infer.spec.plan import micro_batch_ranges


@dataclass
class Sequence:
    """One request on its way: its prompt, how it is sampled, and the tokens it has so far."""

    request: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    tokens: list[int] = field(default_factory=list)

    @property
    def finish_reason(self) -> str | None:
        """``"stop"`` after one of `stop_ids`, ``"length"`` after `max_tokens` tokens, None before."""
        if self.tokens and self.tokens[-1] in self.stop_ids:
            return "stop"
        return "length" if len(self.tokens) >= self.max_tokens else None


class GenerationBatch:
    """Sequence `i` keeps KV cache slot `i`. Micro-batches shrink as their sequences finish."""

    def __init__(
        self,
        sequences: list[Sequence],
        prefill_micro_batch_size: int,
        decode_micro_batch_size: int,
        device: torch.device,
        on_token: Callable[[Sequence], None],
    ) -> None:
        self.sequences = sequences
        self.prefill_ranges = micro_batch_ranges(len(sequences), prefill_micro_batch_size)
        self.decode_ranges = micro_batch_ranges(len(sequences), decode_micro_batch_size)
        self.device = device
        self.on_token = on_token
        self._on_their_way: dict[tuple[Phase, int], list[Sequence]] = {}

    @property
    def rounds(self) -> int:
        """Decode rounds after which every sequence has all its tokens."""
        return max(sequence.max_tokens for sequence in self.sequences) - 1

    def prefill_message(self, index: int) -> Message:
        slots = list(self.prefill_ranges[index])
        rows = [self.sequences[slot].prompt for slot in slots]
        return self._message(Phase.PREFILL, index, slots, [0] * len(slots), rows)

    def decode_message(self, index: int) -> Message:
        slots = [slot for slot in self.decode_ranges[index] if self.sequences[slot].finish_reason is None]
        past = [len(self.sequences[slot].prompt) + len(self.sequences[slot].tokens) - 1 for slot in slots]
        rows = [(self.sequences[slot].tokens[-1],) for slot in slots]
        return self._message(Phase.DECODE, index, slots, past, rows)

    def extend(self, phase: Phase, index: int, tokens: list[int]) -> None:
        """Give the sequences of a returned micro-batch their tokens."""
        for sequence, token in zip(self._on_their_way.pop((phase, index)), tokens, strict=True):
            sequence.tokens.append(token)
            self.on_token(sequence)

    def _message(
        self, phase: Phase, index: int, slots: list[int], past: list[int], rows: list[tuple[int, ...]]
    ) -> Message:
        sequences = [self.sequences[slot] for slot in slots]
        self._on_their_way[phase, index] = sequences
        batch = MicroBatch(phase, tuple(slots), tuple(past), tuple(map(len, rows)), self.device)
        token_ids = torch.tensor([token for row in rows for token in row], dtype=torch.int64, device=self.device)
        return Message(index, batch, tuple(sequence.sampling for sequence in sequences), token_ids)

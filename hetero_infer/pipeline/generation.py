"""`GenerationBatch`: the sequences of a batch as the first stage knows them. The other stages know only messages."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from hetero_infer.models import MicroBatch
from hetero_infer.pipeline.message import TOKEN_ID, Message
from hetero_infer.pipeline.sampling import Sampled
from hetero_infer.spec import Phase
from hetero_infer.spec.plan import micro_batch_ranges
from hetero_infer.spec.sampling import Sampling


@dataclass
class Sequence:
    """One request on its way: its prompt, how it is sampled, and the tokens it has so far. `sampled` is the newest."""

    request: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    tokens: list[int] = field(default_factory=list)
    sampled: Sampled | None = None
    is_cancelled: bool = False

    def extend(self, sampled: Sampled) -> None:
        self.sampled = sampled
        self.tokens.append(sampled.token)

    @property
    def finish_reason(self) -> str | None:
        """``"stop"`` after one of `stop_ids`, ``"length"`` after `max_tokens` tokens, None before."""
        if self.is_cancelled:
            return "cancelled"
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

    def extend(self, phase: Phase, index: int, sampled: list[Sampled]) -> None:
        """Give the sequences of a returned micro-batch their tokens; one that was cancelled meanwhile wants none."""
        for sequence, choice in zip(self._on_their_way.pop((phase, index)), sampled, strict=True):
            if not sequence.is_cancelled:
                sequence.extend(choice)
                self.on_token(sequence)

    def _message(
        self, phase: Phase, index: int, slots: list[int], past: list[int], rows: list[tuple[int, ...]]
    ) -> Message:
        sequences = [self.sequences[slot] for slot in slots]
        self._on_their_way[phase, index] = sequences
        batch = MicroBatch(phase, tuple(slots), tuple(past), tuple(map(len, rows)), self.device)
        token_ids = torch.tensor([token for row in rows for token in row], dtype=torch.int64)
        message = Message(index, batch, token_ids.to(self.device))
        if phase is Phase.DECODE:
            return message
        samplings = tuple(sequence.sampling for sequence in sequences)
        return replace(message, samplings=samplings, token_ids=token_ids.to(TOKEN_ID))

"""What travels from stage to stage: one buffer with a header and the rows of a micro-batch.

The header says all that a stage must know: phase, micro-batch, and per sequence its slot and lengths. Prefill messages
also bring each sequence's sampling and its prompt's token ids, once; only the last stage reads and keeps them.
"""

import itertools
import struct
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field

import torch

from hetero_infer.models import MicroBatch
from hetero_infer.spec import Phase
from hetero_infer.spec.sampling import Sampling

HEADER = struct.Struct("<3i")  # phase, micro-batch, sequences
SEQUENCE = struct.Struct("<3i")  # slot, past tokens, new tokens
SAMPLING = struct.Struct("<2dqi4d2i")  # the fields of `Sampling` in their order; logprobs -1 for None
TOKEN_ID = torch.int32
PHASES = (Phase.PREFILL, Phase.DECODE)
ALIGNMENT = 64  # bytes; where the rows begin


@dataclass(frozen=True)
class Message:
    """One micro-batch between two stages.

    `rows` are token ids `[live_rows]` before the first stage, hidden states `[live_rows, hidden_size]` between stages.
    `samplings` and `token_ids`, int32 `[live_rows]` on the CPU, are those of a prefill; decode messages have none.
    A message without sequences retires its micro-batch.
    """

    index: int
    batch: MicroBatch
    rows: torch.Tensor = field(repr=False)
    samplings: tuple[Sampling, ...] = ()
    token_ids: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=TOKEN_ID), repr=False)

    @property
    def retires(self) -> bool:
        return self.batch.num_sequences == 0


@dataclass(frozen=True)
class MessageFormat:
    """Sizes that both ends of a link know from the plan: of the largest micro-batch of each phase."""

    max_sequences: Mapping[Phase, int]
    max_rows: Mapping[Phase, int]
    hidden_size: int
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        return self.hidden_size * self.dtype.itemsize

    @property
    def most_header_bytes(self) -> int:
        return max(header_bytes(phase, self.max_sequences[phase], self.max_rows[phase]) for phase in Phase)

    @property
    def buffer_bytes(self) -> int:
        return max(self.most_bytes(phase) for phase in Phase)

    def most_bytes(self, phase: Phase) -> int:
        """Of a message of one phase."""
        sequences, rows = self.max_sequences[phase], self.max_rows[phase]
        return header_bytes(phase, sequences, rows) + rows * self.row_bytes

    def message_bytes(self, message: Message) -> int:
        batch = message.batch
        return header_bytes(batch.phase, batch.num_sequences, batch.live_rows) + batch.live_rows * self.row_bytes

    def write(self, message: Message, buffer: torch.Tensor) -> None:
        """Fill the start of `buffer`, uint8 `[buffer_bytes]`."""
        batch = message.batch
        phase, sequences, rows = batch.phase, batch.num_sequences, batch.live_rows
        assert sequences <= self.max_sequences[phase] and rows <= self.max_rows[phase], batch
        header = bytearray(header_bytes(phase, sequences, rows))
        parts = [HEADER.pack(PHASES.index(phase), message.index, sequences)]
        parts += itertools.starmap(SEQUENCE.pack, zip(batch.slots, batch.past_tokens, batch.new_tokens, strict=True))
        if phase is Phase.PREFILL:
            parts += map(_packed, message.samplings)
            parts.append(message.token_ids.numpy().tobytes())
        content = b"".join(parts)
        header[: len(content)] = content
        buffer[: len(header)] = torch.frombuffer(header, dtype=torch.uint8)
        if not message.retires:
            self._rows(buffer, len(header), rows).copy_(message.rows)

    def read(self, buffer: torch.Tensor) -> Message:
        """The message at the start of `buffer`; its rows and token ids stay where they are."""
        header = buffer[: self.most_header_bytes].cpu()
        content = memoryview(header.numpy())
        phase, index, sequences = HEADER.unpack_from(content)
        lengths_end = HEADER.size + sequences * SEQUENCE.size
        lengths = list(SEQUENCE.iter_unpack(content[HEADER.size : lengths_end]))
        slots, past, new = (tuple(record[i] for record in lengths) for i in range(3))
        batch = MicroBatch(PHASES[phase], slots, past, new, buffer.device)
        rows = self._rows(buffer, header_bytes(batch.phase, sequences, batch.live_rows), batch.live_rows)
        if batch.phase is Phase.DECODE:
            return Message(index, batch, rows)
        samplings_end = lengths_end + sequences * SAMPLING.size
        samplings = tuple(map(_unpacked, SAMPLING.iter_unpack(content[lengths_end:samplings_end])))
        token_ids = header[samplings_end : samplings_end + batch.live_rows * TOKEN_ID.itemsize].view(TOKEN_ID)
        return Message(index, batch, rows, samplings, token_ids)

    def _rows(self, buffer: torch.Tensor, start: int, count: int) -> torch.Tensor:
        return buffer[start : start + count * self.row_bytes].view(self.dtype).view(count, self.hidden_size)


def header_bytes(phase: Phase, sequences: int, rows: int) -> int:
    size = HEADER.size + sequences * SEQUENCE.size
    if phase is Phase.PREFILL:
        size += sequences * SAMPLING.size + rows * TOKEN_ID.itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT


def _packed(sampling: Sampling) -> bytes:
    *numbers, logprobs, prompt_logprobs = astuple(sampling)
    return SAMPLING.pack(*numbers, -1 if logprobs is None else logprobs, prompt_logprobs)


def _unpacked(record: tuple[float, ...]) -> Sampling:
    *numbers, logprobs, prompt_logprobs = record
    return Sampling(*numbers, None if logprobs < 0 else logprobs, bool(prompt_logprobs))

"""What travels from stage to stage: one buffer with a header and the rows of a micro-batch.

The header says all that a stage must know (phase, micro-batch, and per sequence its slot, lengths and sampling), so
stages other than the first keep no state about requests, only KV cache slots.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from hetero_infer.models import MicroBatch
from hetero_infer.pipeline.sampling import Sampling
from hetero_infer.spec import Phase

HEADER = struct.Struct("<3i")  # phase, micro-batch, sequences
SEQUENCE = struct.Struct("<3iddq")  # slot, past tokens, new tokens, temperature, top_p, seed
PHASES = (Phase.PREFILL, Phase.DECODE)
ALIGNMENT = 64  # bytes; where the rows begin


@dataclass(frozen=True)
class Message:
    """One micro-batch between two stages.

    `rows` are token ids `[live_rows]` before the first stage, hidden states `[live_rows, hidden_size]` between stages.
    A message without sequences retires its micro-batch.
    """

    index: int
    batch: MicroBatch
    samplings: tuple[Sampling, ...]
    rows: torch.Tensor = field(repr=False)

    @property
    def retires(self) -> bool:
        return self.batch.num_sequences == 0


@dataclass(frozen=True)
class MessageFormat:
    """Sizes that both ends of a link know from the plan."""

    max_sequences: int
    max_rows: Mapping[Phase, int]
    hidden_size: int
    dtype: torch.dtype

    @property
    def header_bytes(self) -> int:
        size = HEADER.size + SEQUENCE.size * self.max_sequences
        return -(-size // ALIGNMENT) * ALIGNMENT

    @property
    def row_bytes(self) -> int:
        return self.hidden_size * self.dtype.itemsize

    @property
    def buffer_bytes(self) -> int:
        return max(self.most_bytes(phase) for phase in Phase)

    def most_bytes(self, phase: Phase) -> int:
        """Of a message of one phase."""
        return self.header_bytes + self.max_rows[phase] * self.row_bytes

    def message_bytes(self, message: Message) -> int:
        return self.header_bytes + message.batch.live_rows * self.row_bytes

    def write(self, message: Message, buffer: torch.Tensor) -> None:
        """Fill the start of `buffer`, uint8 `[buffer_bytes]`."""
        batch = message.batch
        assert batch.num_sequences <= self.max_sequences and batch.live_rows <= self.max_rows[batch.phase], batch
        header = bytearray(self.header_bytes)
        HEADER.pack_into(header, 0, PHASES.index(batch.phase), message.index, batch.num_sequences)
        for i, (slot, past, new, how) in enumerate(
            zip(batch.slots, batch.past_tokens, batch.new_tokens, message.samplings, strict=True)
        ):
            record = (slot, past, new, how.temperature, how.top_p, how.seed)
            SEQUENCE.pack_into(header, HEADER.size + i * SEQUENCE.size, *record)
        buffer[: self.header_bytes] = torch.frombuffer(header, dtype=torch.uint8)
        if not message.retires:
            self._rows(buffer, batch.live_rows).copy_(message.rows)

    def read(self, buffer: torch.Tensor) -> Message:
        """The message at the start of `buffer`; its rows stay where they are."""
        header = buffer[: self.header_bytes].cpu().numpy().tobytes()
        phase, index, num_sequences = HEADER.unpack_from(header)
        records = [SEQUENCE.unpack_from(header, HEADER.size + i * SEQUENCE.size) for i in range(num_sequences)]
        batch = MicroBatch(
            PHASES[phase],
            tuple(record[0] for record in records),
            tuple(record[1] for record in records),
            tuple(record[2] for record in records),
            buffer.device,
        )
        samplings = tuple(Sampling(temperature, top_p, seed) for *_, temperature, top_p, seed in records)
        return Message(index, batch, samplings, self._rows(buffer, batch.live_rows))

    def _rows(self, buffer: torch.Tensor, count: int) -> torch.Tensor:
        stop = self.header_bytes + count * self.row_bytes
        return buffer[self.header_bytes : stop].view(self.dtype).view(count, self.hidden_size)

"""A message arrives as it was sent, and a buffer of the size that the plan says holds the largest."""

import pytest
import torch

from hetero_infer.models import MicroBatch
from hetero_infer.pipeline.message import Message, MessageFormat
from hetero_infer.pipeline.sampling import Sampling
from hetero_infer.spec import Phase

FORMAT = MessageFormat(
    max_sequences=4, max_rows={Phase.PREFILL: 20, Phase.DECODE: 4}, hidden_size=6, dtype=torch.float32
)
SAMPLINGS = (
    Sampling(),
    Sampling(0.7, 0.9, 2**63 - 1),
    Sampling(1e-30, 0.0, -(2**63)),
    Sampling(2.0, 1 / 3, 12345678901234567),
)


def message_of(
    phase: Phase,
    slots: tuple[int, ...],
    past: tuple[int, ...],
    new: tuple[int, ...],
    format: MessageFormat = FORMAT,
    index: int = 3,
) -> Message:
    batch = MicroBatch(phase, slots, past, new)
    return Message(index, batch, SAMPLINGS[: len(slots)], torch.randn(sum(new), format.hidden_size).to(format.dtype))


def sent(message: Message, format: MessageFormat = FORMAT) -> Message:
    """What is read from a copy of the bytes that travel, in a buffer full of the last message."""
    buffer = torch.full((format.buffer_bytes,), 255, dtype=torch.uint8)
    format.write(message, buffer)
    arrived = torch.full((format.buffer_bytes,), 170, dtype=torch.uint8)
    count = format.message_bytes(message)
    arrived[:count] = buffer[:count]
    return format.read(arrived)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("phase", "slots", "past", "new"),
    [
        (Phase.PREFILL, (0, 1, 2), (0, 0, 0), (5, 1, 9)),
        (Phase.PREFILL, (3,), (0,), (20,)),
        (Phase.DECODE, (6, 2, 4, 1), (11, 30, 1, 7), (1, 1, 1, 1)),
        (Phase.DECODE, (2**20,), (2**20,), (1,)),
    ],
)
def test_a_message_arrives_as_it_was_sent(
    phase: Phase, slots: tuple[int, ...], past: tuple[int, ...], new: tuple[int, ...], dtype: torch.dtype
) -> None:
    format = MessageFormat(4, {Phase.PREFILL: 20, Phase.DECODE: 4}, 6, dtype)
    message = message_of(phase, slots, past, new, format)
    got = sent(message, format)
    assert (got.index, got.batch, got.samplings) == (message.index, message.batch, message.samplings)
    assert got.rows.dtype == dtype and torch.equal(got.rows, message.rows)
    assert not got.retires


@pytest.mark.parametrize("phase", list(Phase))
def test_an_empty_message_retires_its_micro_batch(phase: Phase) -> None:
    message = Message(2, MicroBatch(phase, (), (), ()), (), torch.empty(0))
    got = sent(message)
    assert message.retires and got.retires
    assert (got.index, got.batch.phase, got.samplings) == (2, phase, ())
    assert FORMAT.message_bytes(message) == FORMAT.header_bytes


def test_the_buffer_holds_the_largest_message_and_not_a_byte_more() -> None:
    largest = message_of(Phase.PREFILL, (0, 1, 2, 3), (0,) * 4, (5,) * 4)
    assert FORMAT.message_bytes(largest) == FORMAT.buffer_bytes
    assert torch.equal(sent(largest).rows, largest.rows)


@pytest.mark.parametrize(("slots", "new"), [((0,), (21,)), ((0, 1, 2, 3, 4), (1,) * 5)], ids=["rows", "sequences"])
def test_a_message_that_is_too_large_is_refused_before_it_is_sent(slots: tuple[int, ...], new: tuple[int, ...]) -> None:
    """A receive buffer that is too small would abort a gloo process."""
    batch = MicroBatch(Phase.PREFILL, slots, (0,) * len(slots), new)
    message = Message(0, batch, (Sampling(),) * len(slots), torch.zeros(sum(new), 6))
    with pytest.raises(AssertionError):
        FORMAT.write(message, torch.empty(10 * FORMAT.buffer_bytes, dtype=torch.uint8))


def test_rows_begin_where_any_type_may() -> None:
    for max_sequences in range(1, 40):
        assert MessageFormat(max_sequences, {}, 6, torch.float16).header_bytes % 64 == 0


def test_the_header_is_as_large_as_the_cost_model_says() -> None:
    """`cost.comm` counts it, in seconds and in memory."""
    from hetero_infer.cost.comm import activation_message_bytes

    for batch_size in (1, 7, 32, 200, 1000):
        header_bytes = MessageFormat(batch_size, {}, 6, torch.float32).header_bytes
        assert header_bytes == activation_message_bytes(0, 6, 4, batch_size)

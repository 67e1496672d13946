"""A message arrives as it was sent, and a buffer of the size that the plan says holds the largest."""

import math

import pytest
import torch

from hetero_infer.cost.comm import activation_message_bytes, token_message_bytes
from hetero_infer.models import MicroBatch
from hetero_infer.pipeline.message import Message, MessageFormat, header_bytes
from hetero_infer.pipeline.sampling import Sampled
from hetero_infer.pipeline.transport import MOST_LOGPROB_NUMBERS, TOKEN_HEADER, pack_tokens, unpack_tokens
from hetero_infer.spec import Phase
from hetero_infer.spec.sampling import MOST_LOGPROBS, Sampling

MAX_SEQUENCES, MAX_ROWS = {Phase.PREFILL: 4, Phase.DECODE: 4}, {Phase.PREFILL: 20, Phase.DECODE: 4}
FORMAT = MessageFormat(MAX_SEQUENCES, MAX_ROWS, hidden_size=6, dtype=torch.float32)
SAMPLINGS = (
    Sampling(),
    Sampling(0.7, 0.9, 2**63 - 1, 2**31 - 1, 1 / 7, 1.3, 2.0, -2.0, 0),
    Sampling(1e-30, 0.0, -(2**63), -1, logprobs=MOST_LOGPROBS),
    Sampling(2.0, 1 / 3, 12345678901234567, frequency_penalty=0.1, prompt_logprobs=True),
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
    rows = torch.randn(sum(new), format.hidden_size).to(format.dtype)
    if phase is Phase.DECODE:
        return Message(index, batch, rows)
    token_ids = torch.randint(2**31 - 1, (sum(new),), dtype=torch.int32)
    return Message(index, batch, rows, SAMPLINGS[: len(slots)], token_ids)


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
    format = MessageFormat(MAX_SEQUENCES, MAX_ROWS, 6, dtype)
    message = message_of(phase, slots, past, new, format)
    got = sent(message, format)
    assert (got.index, got.batch, got.samplings) == (message.index, message.batch, message.samplings)
    assert got.rows.dtype == dtype and torch.equal(got.rows, message.rows)
    assert torch.equal(got.token_ids, message.token_ids)
    assert not got.retires


@pytest.mark.parametrize("phase", list(Phase))
def test_an_empty_message_retires_its_micro_batch(phase: Phase) -> None:
    message = Message(2, MicroBatch(phase, (), (), ()), torch.empty(0))
    got = sent(message)
    assert message.retires and got.retires
    assert (got.index, got.batch.phase, got.samplings) == (2, phase, ())
    assert FORMAT.message_bytes(message) == header_bytes(phase, 0, 0)


def test_the_buffer_holds_the_largest_message_and_not_a_byte_more() -> None:
    largest = message_of(Phase.PREFILL, (0, 1, 2, 3), (0,) * 4, (5,) * 4)
    assert FORMAT.message_bytes(largest) == FORMAT.buffer_bytes
    assert torch.equal(sent(largest).rows, largest.rows)


@pytest.mark.parametrize(("slots", "new"), [((0,), (21,)), ((0, 1, 2, 3, 4), (1,) * 5)], ids=["rows", "sequences"])
def test_a_message_that_is_too_large_is_refused_before_it_is_sent(slots: tuple[int, ...], new: tuple[int, ...]) -> None:
    """A receive buffer that is too small would abort a gloo process."""
    message = message_of(Phase.PREFILL, slots, (0,) * len(slots), new)
    with pytest.raises(AssertionError):
        FORMAT.write(message, torch.empty(10 * FORMAT.buffer_bytes, dtype=torch.uint8))


@pytest.mark.parametrize("phase", list(Phase))
def test_rows_begin_where_any_type_may(phase: Phase) -> None:
    for sequences in range(40):
        assert header_bytes(phase, sequences, 7 * sequences) % 64 == 0


def test_a_decode_header_is_as_large_for_any_sampling() -> None:
    """Three lengths per sequence; sampling and prompt travelled before."""
    assert header_bytes(Phase.DECODE, 4, 4) == 64
    assert header_bytes(Phase.PREFILL, 4, 20) == 448  # 12 + 4 (12 + 68) + 20 · 4 = 412


@pytest.mark.parametrize("phase", list(Phase))
def test_a_message_is_as_large_as_the_cost_model_says(phase: Phase) -> None:
    """`cost.comm` counts it, in seconds and in memory."""
    for sequences in (1, 2, 4):
        message = message_of(phase, tuple(range(sequences)), (3,) * sequences, (1,) * sequences)
        assert FORMAT.message_bytes(message) == activation_message_bytes(phase, sequences, sequences, 6, 4)
    assert FORMAT.most_bytes(Phase.PREFILL) == activation_message_bytes(Phase.PREFILL, 4, 20, 6, 4)


LOGPROBS = ((7, -0.1), *((token, -1.0 / 3 - token) for token in range(MOST_LOGPROBS)))


@pytest.mark.parametrize(
    "sampled",
    [
        [],
        [Sampled(3), Sampled(2**31 - 1), Sampled(0)],
        [Sampled(3), Sampled(7, ((7, -1e-17),)), Sampled(7, LOGPROBS), Sampled(1)],
        [Sampled(3), Sampled(7, None, (-0.5, -1e-17, -math.inf)), Sampled(9, LOGPROBS, (-1 / 3,))],
    ],
)
@pytest.mark.parametrize("phase", list(Phase))
def test_tokens_return_with_what_was_asked_for(phase: Phase, sampled: list[Sampled]) -> None:
    content = pack_tokens(phase, 5, sampled)
    longer = torch.cat([content, torch.full((9,), -1, dtype=torch.int64)])  # a buffer for the largest
    assert unpack_tokens(longer) == (phase, 5, sampled)


def test_tokens_are_as_large_as_the_cost_model_says_and_as_the_largest_buffer() -> None:
    for count in (0, 1, 30):
        assert pack_tokens(Phase.DECODE, 0, [Sampled(5)] * count).nbytes == token_message_bytes(count)
    largest = pack_tokens(Phase.DECODE, 0, [Sampled(7, LOGPROBS)] * 30)
    assert len(largest) == TOKEN_HEADER + 30 * (1 + MOST_LOGPROB_NUMBERS)

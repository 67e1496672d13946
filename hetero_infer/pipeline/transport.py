"""Bytes between stages: activations forward, tokens back, and the announcement of what comes next."""

import itertools
from collections import deque
from collections.abc import Iterator

import torch
import torch.distributed

from hetero_infer.models import MicroBatch
from hetero_infer.pipeline.message import Message, MessageFormat
from hetero_infer.pipeline.sampling import Sampled
from hetero_infer.spec import Phase
from hetero_infer.spec.sampling import MOST_LOGPROBS

BUFFERS = 2  # per direction: one on its way while the other is worked on
TOKEN_HEADER = 4  # numbers before the tokens: is decode, micro-batch, tokens, numbers after the tokens
MOST_LOGPROB_NUMBERS = 2 + 2 * (1 + MOST_LOGPROBS)  # of a token: how many pairs, the pairs, how many of its prompt


class ActivationChannel:
    """Messages to the next stage and from the previous one; sends and receives overlap the computation."""

    def __init__(self, format: MessageFormat, stage: int, num_stages: int, device: torch.device) -> None:
        self.format = format
        self.previous_rank = stage - 1 if stage > 0 else None
        self.next_rank = stage + 1 if stage + 1 < num_stages else None
        self.sizes_are_fixed = torch.distributed.get_backend() == "nccl"  # both ends must name the same size there
        self._sending: deque[tuple[torch.distributed.Work, torch.Tensor]] = deque()
        self._free = self._buffers(device, wanted=self.next_rank is not None)
        self._incoming: deque[tuple[torch.distributed.Work, torch.Tensor]] = deque()
        self._spare = self._buffers(device, wanted=self.previous_rank is not None)
        self._reading: torch.Tensor | None = None

    def _buffers(self, device: torch.device, wanted: bool) -> deque[torch.Tensor]:
        sizes = [self.format.buffer_bytes] * (BUFFERS if wanted else 0)
        return deque(torch.empty(size, dtype=torch.uint8, device=device) for size in sizes)

    @property
    def num_bytes(self) -> int:
        ends = (self.previous_rank is not None) + (self.next_rank is not None)
        return ends * BUFFERS * self.format.buffer_bytes

    def send(self, message: Message) -> None:
        """Start the transfer; waits only if all send buffers are still on their way."""
        if not self._free:
            work, buffer = self._sending.popleft()
            work.wait()
            self._free.append(buffer)
        buffer = self._free.popleft()
        self.format.write(message, buffer)
        if self.sizes_are_fixed:
            num_bytes = self.format.most_bytes(message.batch.phase)
        else:
            num_bytes = self.format.message_bytes(message)
        self._sending.append((torch.distributed.isend(buffer[:num_bytes], self.next_rank), buffer))

    def receive(self, phase: Phase) -> Message:
        """Wait for the next message. Its rows are valid until the next call.

        Where a buffer may be larger than its message, the receive after this one is posted as well.
        """
        if self._reading is not None:
            self._spare.append(self._reading)
        num_bytes = self.format.most_bytes(phase) if self.sizes_are_fixed else self.format.buffer_bytes
        while self._spare and not (self.sizes_are_fixed and self._incoming):
            buffer = self._spare.popleft()
            self._incoming.append((torch.distributed.irecv(buffer[:num_bytes], self.previous_rank), buffer))
        work, self._reading = self._incoming.popleft()
        work.wait()
        return self.format.read(self._reading)

    def close(self) -> None:
        """Use up the receive that is posted ahead, with an empty message, and see every send through."""
        if self._sending and not self.sizes_are_fixed:
            self.send(Message(0, MicroBatch(Phase.PREFILL, (), (), ()), torch.empty(0)))
        for work, _ in (*self._incoming, *self._sending):
            work.wait()


class TokenRing:
    """Tokens from the last stage to the first, and announcements from the first to all.

    A gloo group of its own: on NCCL forward and return between the same two ranks would share a communicator and can
    deadlock, and tokens are wanted in host memory anyway.
    """

    def __init__(self, stage: int, num_stages: int, format: MessageFormat) -> None:
        self.num_stages = num_stages
        max_sequences = max(format.max_sequences.values())
        self.most_numbers = TOKEN_HEADER + max_sequences * (1 + MOST_LOGPROB_NUMBERS) + format.max_rows[Phase.PREFILL]
        self.group = torch.distributed.new_group(backend="gloo")
        self._sending: deque[tuple[torch.distributed.Work, torch.Tensor]] = deque()
        self._local: deque[torch.Tensor] = deque()  # of a pipeline of one stage

    def send(self, phase: Phase, micro_batch: int, sampled: list[Sampled]) -> None:
        while self._sending and self._sending[0][0].is_completed():
            self._sending.popleft()
        content = pack_tokens(phase, micro_batch, sampled)
        if self.num_stages == 1:
            self._local.append(content)
        else:
            self._sending.append((torch.distributed.isend(content, 0, group=self.group), content))

    def receive(self, phase: Phase, micro_batch: int) -> list[Sampled]:
        content = torch.empty(self.most_numbers, dtype=torch.int64)
        if self.num_stages == 1:
            content = self._local.popleft()
        else:
            torch.distributed.recv(content, self.num_stages - 1, group=self.group)
        got_phase, index, sampled = unpack_tokens(content)
        if (got_phase, index) != (phase, micro_batch):
            raise RuntimeError(f"awaited tokens of {phase} {micro_batch} and received those of {got_phase} {index}")
        return sampled

    def announce(self, *numbers: int) -> None:
        """First stage: tell every stage what comes next."""
        torch.distributed.broadcast(torch.tensor(numbers), 0, group=self.group)

    def await_announcement(self, count: int) -> list[int]:
        numbers = torch.empty(count, dtype=torch.int64)
        torch.distributed.broadcast(numbers, 0, group=self.group)
        return numbers.tolist()


def pack_tokens(phase: Phase, micro_batch: int, sampled: list[Sampled]) -> torch.Tensor:
    """int64: a header, the tokens, and if one has log-probabilities, in float64 per token: how many pairs, these, how
    many of its prompt, and these."""
    numbers: list[float] = []
    if any(choice.logprobs or choice.prompt_logprobs for choice in sampled):
        for choice in sampled:
            pairs, of_prompt = choice.logprobs or (), choice.prompt_logprobs
            numbers += [len(pairs), *itertools.chain(*pairs), len(of_prompt), *of_prompt]
    tokens = [choice.token for choice in sampled]
    head = torch.tensor([phase is Phase.DECODE, micro_batch, len(tokens), len(numbers), *tokens], dtype=torch.int64)
    return torch.cat([head, torch.tensor(numbers, dtype=torch.float64).view(torch.int64)])


def unpack_tokens(content: torch.Tensor) -> tuple[Phase, int, list[Sampled]]:
    """Phase, micro-batch and tokens from the start of `content`."""
    is_decode, micro_batch, num_tokens, num_numbers = content[:TOKEN_HEADER].tolist()
    tokens_end = TOKEN_HEADER + num_tokens
    tokens = content[TOKEN_HEADER:tokens_end].tolist()
    numbers = iter(content[tokens_end : tokens_end + num_numbers].view(torch.float64).tolist())
    sampled = [Sampled(token, *(_logprobs(numbers) if num_numbers else ())) for token in tokens]
    return Phase.DECODE if is_decode else Phase.PREFILL, micro_batch, sampled


def _logprobs(numbers: Iterator[float]) -> tuple[tuple[tuple[int, float], ...] | None, tuple[float, ...]]:
    pairs = tuple((int(next(numbers)), next(numbers)) for _ in range(int(next(numbers))))
    return pairs or None, tuple(next(numbers) for _ in range(int(next(numbers))))

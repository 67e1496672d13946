"""When each stage does what: `PrefillSchedule`, then `DecodeSchedule`. Lazy, and free of tensors and ranks.

A step is yielded only after the one before it was executed, so what comes next may depend on who finished. Sends do
not block, and every receive is matched by a send in a step of no higher number, so a barrier may stand between steps.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from deepspeed.runtime.pipe.schedule import PipeSchedule

from hetero_infer.pipeline.instructions import (
    DecodeForward,
    LoadPrompts,
    LoadTokens,
    MicroBatchInstruction,
    PrefillForward,
    RecvActivations,
    RecvTokens,
    SampleTokens,
    SendActivations,
    SendTokens,
)
from hetero_infer.spec import Phase

Step = list[MicroBatchInstruction]


class Schedule(Protocol):
    def __iter__(self) -> Iterator[Step]: ...


class _PhaseSchedule(PipeSchedule):
    """What both phases share: how one stage passes one micro-batch on."""

    phase: Phase
    load: type[MicroBatchInstruction]
    forward: type[MicroBatchInstruction]

    def num_pipe_buffers(self) -> int:
        return 1  # a stage works on one micro-batch at a time; what is on its way belongs to the channel

    def _pass_on(self, micro_batch: int) -> Step:
        entry = self.load if self.is_first_stage else RecvActivations
        leave = (SampleTokens, SendTokens) if self.is_last_stage else (SendActivations,)
        return [instruction(self.phase, micro_batch) for instruction in (entry, self.forward, *leave)]


class PrefillSchedule(_PhaseSchedule):
    """Every prefill micro-batch goes through once, in order.

    The first stage does not wait for tokens here: `DecodeSchedule` takes each when it first needs it.
    """

    phase = Phase.PREFILL
    load = LoadPrompts
    forward = PrefillForward

    def steps(self) -> Iterator[Step]:
        for micro_batch in range(self.micro_batches):
            yield self._pass_on(micro_batch)


class DecodeSchedule(_PhaseSchedule):
    """Decode micro-batches circulate: round `r` gives each of their sequences its token `r + 1`.

    Args:
        prefill_ranges: the sequences of each prefill micro-batch.
        decode_ranges: the sequences of each decode micro-batch; the two need not have the same borders.
        rounds: how often a micro-batch circulates at the most.
        retired: whether a micro-batch was announced as finished; asked when its next round comes up.
    """

    phase = Phase.DECODE
    load = LoadTokens
    forward = DecodeForward

    def __init__(
        self,
        prefill_ranges: Sequence[range],
        decode_ranges: Sequence[range],
        rounds: int,
        stages: int,
        stage_id: int,
        retired: Callable[[int], bool] = lambda micro_batch: False,
    ) -> None:
        super().__init__(len(decode_ranges), stages, stage_id)
        self.prefill_ranges = prefill_ranges
        self.decode_ranges = decode_ranges
        self.rounds = rounds
        self.retired = retired

    def steps(self) -> Iterator[Step]:
        yield from self._first_stage() if self.is_first_stage else self._other_stage()

    def _other_stage(self) -> Iterator[Step]:
        for _ in range(self.rounds):
            for micro_batch in range(self.micro_batches):
                if not self.retired(micro_batch):
                    yield self._pass_on(micro_batch)

    def _first_stage(self) -> Iterator[Step]:
        awaited = list(range(len(self.prefill_ranges)))  # prefill micro-batches whose tokens are still to come
        started: set[int] = set()
        arrivals: Step = []
        for round_ in range(self.rounds):
            for micro_batch, sequences in enumerate(self.decode_ranges):
                if self.retired(micro_batch) and micro_batch in started:
                    started.remove(micro_batch)
                    arrivals.append(RecvTokens(Phase.DECODE, micro_batch))  # the empty message that retired it
                if self.retired(micro_batch):
                    continue
                if round_:
                    arrivals.append(RecvTokens(Phase.DECODE, micro_batch))
                while round_ == 0 and awaited and self.prefill_ranges[awaited[0]].start < sequences.stop:
                    arrivals.append(RecvTokens(Phase.PREFILL, awaited.pop(0)))
                started.add(micro_batch)
                yield [*arrivals, *self._pass_on(micro_batch)]
                arrivals = []
        arrivals += [RecvTokens(Phase.PREFILL, micro_batch) for micro_batch in awaited]
        yield arrivals + [RecvTokens(Phase.DECODE, micro_batch) for micro_batch in sorted(started)]

"""What a stage can be told to do. Schedules yield these; `HeteroPipelineEngine` executes them, `simulate` times them.

Every instruction names its `phase` and `micro_batch`. Pairing: each `SendActivations` of a stage has one
`RecvActivations` on the next, each `SendTokens` of the last stage has one `RecvTokens` on the first, in the same order.
"""

from deepspeed.runtime.pipe.schedule import PipeInstruction

from hetero_infer.spec import Phase


class MicroBatchInstruction(PipeInstruction):
    """An instruction about one micro-batch of one phase."""

    phase: Phase
    micro_batch: int

    def __init__(self, phase: Phase, micro_batch: int) -> None:
        super().__init__(phase=phase, micro_batch=micro_batch)

    @property
    def label(self) -> str:
        """``P2`` or ``D0``."""
        return f"{self.phase.value[0].upper()}{self.micro_batch}"


class LoadPrompts(MicroBatchInstruction):
    """First stage: the prompts of a prefill micro-batch become rows.

    Roughly:
        message = batch.prefill_message(micro_batch)
    """


class LoadTokens(MicroBatchInstruction):
    """First stage: the newest token of each unfinished sequence of a decode micro-batch becomes a row.

    When none is unfinished the message is empty and says that the micro-batch retires; every stage passes it on.

    Roughly:
        message = batch.decode_message(micro_batch)
    """


class RecvActivations(MicroBatchInstruction):
    """Wait for the message of the previous stage.

    Roughly:
        message = channel.receive()
    """


class PrefillForward(MicroBatchInstruction):
    """Run this stage's layers over the prompts; fills KV cache slots.

    Roughly:
        message.hidden = layers(message.hidden)
    """


class DecodeForward(MicroBatchInstruction):
    """Run this stage's layers over one token per sequence; adds one entry to each KV cache slot.

    Roughly:
        message.hidden = layers(message.hidden)
    """


class SendActivations(MicroBatchInstruction):
    """Hand the message to the next stage; returns while it is still on its way.

    Roughly:
        channel.send(message)
    """


class SampleTokens(MicroBatchInstruction):
    """Last stage: logits become one token per sequence.

    Roughly:
        tokens = sample(logits, message.sampling)
    """


class SendTokens(MicroBatchInstruction):
    """Last stage: return the tokens to the first stage, on a process group of their own.

    Roughly:
        ring.send(tokens)
    """


class RecvTokens(MicroBatchInstruction):
    """First stage: wait for the tokens of a micro-batch; sequences that they finish leave.

    Roughly:
        batch.extend(micro_batch, ring.receive())
    """

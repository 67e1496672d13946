"""`HeteroPipelineEngine`: DeepSpeed's pipeline engine with a KV cache and a decode loop."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.pipe.engine import PipelineEngine

from hetero_infer.models import KVCache
from hetero_infer.models.micro_batch import padded_row_count
from hetero_infer.pipeline import instructions
from hetero_infer.pipeline.generation import GenerationBatch, Sequence
from hetero_infer.pipeline.message import Message, MessageFormat
from hetero_infer.pipeline.module import PlannedPipelineModule
from hetero_infer.pipeline.pace import Pace
from hetero_infer.pipeline.sampling import Sampled, Sampler
from hetero_infer.pipeline.schedules import DecodeSchedule, PrefillSchedule
from hetero_infer.pipeline.scoring import prompt_logprobs
from hetero_infer.pipeline.transport import ActivationChannel, TokenRing
from hetero_infer.spec import Phase
from hetero_infer.spec.plan import micro_batch_ranges

ENGINE_CONFIG = {"train_micro_batch_size_per_gpu": 1}  # DeepSpeed insists on one; nothing is trained


@dataclass(frozen=True)
class PhaseSeconds:
    """Measured at the first stage: until it has taken up the last prefill token, and from there to the last token."""

    prefill_s: float
    decode_s: float


class HeteroPipelineEngine(PipelineEngine):
    """Executes `PrefillSchedule`, then `DecodeSchedule`, for one batch after the other.

    The first stage calls `generate`, every other stage `follow`, until `shut_down` ends them.
    """

    def __init__(
        self,
        module: PlannedPipelineModule,
        cache: KVCache,
        format: MessageFormat,
        prefill_micro_batch_size: int,
        decode_micro_batch_size: int,
        slowdown: float = 1.0,
    ) -> None:
        mpu = module.mpu()
        config = DeepSpeedConfig(ENGINE_CONFIG, mpu)
        super().__init__(args=None, model=module, mpu=mpu, config=ENGINE_CONFIG, config_class=config)
        self.eval()
        self.cache = cache
        self.prefill_micro_batch_size = prefill_micro_batch_size
        self.decode_micro_batch_size = decode_micro_batch_size
        self.channel = ActivationChannel(format, self.stage_id, self.num_stages, self.device)
        self.ring = TokenRing(self.stage_id, self.num_stages, format)
        self.sampler = Sampler()  # of the last stage
        self.pace = Pace(slowdown)
        self.batch: GenerationBatch | None = None  # of the first stage
        self.message: Message | None = None  # what this stage works on
        self.prompt_logprobs: list[tuple[float, ...]] = []  # by the last stage, of what it works on
        self.sampled: list[Sampled] = []  # by the last stage
        self.retired: set[int] = set()
        self.prefill_ended_s = 0.0

    def generate(
        self, sequences: list[Sequence], on_token: Callable[[Sequence], None] = lambda sequence: None
    ) -> PhaseSeconds:
        """First stage: extend every sequence until it finishes. `on_token` is called after each new token."""
        self.batch = GenerationBatch(
            sequences, self.prefill_micro_batch_size, self.decode_micro_batch_size, self.device, on_token
        )
        began_s = time.perf_counter()
        self.ring.announce(len(sequences), self.batch.rounds)
        self._execute(len(sequences), self.batch.rounds)
        return PhaseSeconds(self.prefill_ended_s - began_s, time.perf_counter() - self.prefill_ended_s)

    def follow(self) -> bool:
        """Other stages: take part in the next batch. False when there is none any more."""
        num_sequences, rounds = self.ring.await_announcement(2)
        if num_sequences:
            self._execute(num_sequences, rounds)
        else:
            self.channel.close()
        return num_sequences > 0

    def shut_down(self) -> None:
        """First stage: let every other stage's `follow` return False."""
        self.ring.announce(0, 0)
        self.channel.close()

    @torch.inference_mode()
    def _execute(self, num_sequences: int, rounds: int) -> None:
        prefill_ranges = micro_batch_ranges(num_sequences, self.prefill_micro_batch_size)
        decode_ranges = micro_batch_ranges(num_sequences, self.decode_micro_batch_size)
        self.retired = set()
        self._exec_schedule(PrefillSchedule(len(prefill_ranges), self.num_stages, self.stage_id))
        self._exec_schedule(
            DecodeSchedule(
                prefill_ranges, decode_ranges, rounds, self.num_stages, self.stage_id, self.retired.__contains__
            )
        )

    def _exec_load_prompts(self, phase: Phase, micro_batch: int) -> None:
        self.message = self.batch.prefill_message(micro_batch)

    def _exec_load_tokens(self, phase: Phase, micro_batch: int) -> None:
        self.message = self.batch.decode_message(micro_batch)
        self._note_retirement()

    def _exec_recv_message(self, phase: Phase, micro_batch: int) -> None:
        self.message = self.channel.receive(phase)
        got = (self.message.batch.phase, self.message.index)
        if got != (phase, micro_batch):
            raise RuntimeError(f"stage {self.stage_id} awaited {phase} {micro_batch} and received {got}")
        self._note_retirement()

    def _note_retirement(self) -> None:
        if self.message.retires:
            self.retired.add(self.message.index)

    def _exec_forward(self, phase: Phase, micro_batch: int) -> None:
        if not self.message.retires:
            with self.pace.computing():
                rows = self.module(self.message.rows, self.message.batch, self.cache)
                self.message = replace(self.message, rows=rows)
                if self.is_last_stage():
                    self._run_head()

    def _run_head(self) -> None:
        batch = self.message.batch
        logits = partial(self.module.logits, batch=batch, cache=self.cache)
        rows_at_once = padded_row_count(max(self.prefill_micro_batch_size, self.decode_micro_batch_size))
        self.prompt_logprobs = prompt_logprobs(self.message, logits, rows_at_once)
        self.message = replace(self.message, rows=logits(self.message.rows[batch.last_rows]))

    def _exec_send_message(self, phase: Phase, micro_batch: int) -> None:
        self.channel.send(self.message)

    def _exec_sample_tokens(self, phase: Phase, micro_batch: int) -> None:
        sampled = [] if self.message.retires else self.sampler.sample(self.message)
        scored = zip(sampled, self.prompt_logprobs, strict=False)  # those of a retired micro-batch are another's
        self.sampled = [replace(choice, prompt_logprobs=logprobs) for choice, logprobs in scored]

    def _exec_send_tokens(self, phase: Phase, micro_batch: int) -> None:
        self.ring.send(phase, micro_batch, self.sampled)

    def _exec_recv_tokens(self, phase: Phase, micro_batch: int) -> None:
        self.batch.extend(phase, micro_batch, self.ring.receive(phase, micro_batch))
        if phase is Phase.PREFILL:
            self.prefill_ended_s = time.perf_counter()

    # DeepSpeed looks instructions up here by their exact type.
    _INSTRUCTION_MAP = {  # noqa: RUF012
        **PipelineEngine._INSTRUCTION_MAP,
        instructions.LoadPrompts: _exec_load_prompts,
        instructions.LoadTokens: _exec_load_tokens,
        instructions.RecvActivations: _exec_recv_message,
        instructions.PrefillForward: _exec_forward,
        instructions.DecodeForward: _exec_forward,
        instructions.SendActivations: _exec_send_message,
        instructions.SampleTokens: _exec_sample_tokens,
        instructions.SendTokens: _exec_send_tokens,
        instructions.RecvTokens: _exec_recv_tokens,
    }

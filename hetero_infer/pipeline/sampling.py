"""From logits to tokens. A token depends on its sequence's own logits, tokens, seed and position, and on nothing else.

`Sampler` is the last stage's: beside a sequence's KV cache slot it keeps how the sequence is sampled and what it said.
The order is that of `transformers`: penalties, temperature, top-k, top-p, min-p.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from hetero_infer.pipeline.message import Message
from hetero_infer.spec import Phase
from hetero_infer.spec.sampling import Sampling


@dataclass(frozen=True)
class Sampled:
    """A token; and where they were asked for, pairs of token and log-probability: its own, then the likeliest ones'.

    With the first token come the log-probabilities of its prompt, where those were asked for.
    """

    token: int
    logprobs: tuple[tuple[int, float], ...] | None = None
    prompt_logprobs: tuple[float, ...] = ()


@dataclass
class Speaker:
    """What the tokens of a sequence depend on besides its logits. `prompt` and `said` are filled for penalties only."""

    sampling: Sampling
    prompt: list[int] = field(default_factory=list)
    said: list[int] = field(default_factory=list)


class Sampler:
    """A prefill message brings each sequence's sampling and prompt; decode messages name the slot alone."""

    def __init__(self) -> None:
        self._speakers: dict[int, Speaker] = {}  # by KV cache slot

    def sample(self, message: Message) -> list[Sampled]:
        """One token per sequence of `message`, whose rows are logits `[sequences, vocab_size]`."""
        batch = message.batch
        if batch.phase is Phase.PREFILL:
            self._meet(message)
        speakers = [self._speakers[slot] for slot in batch.slots]
        positions = [past + new for past, new in zip(batch.past_tokens, batch.new_tokens, strict=True)]
        sampled = sample(message.rows, speakers, positions)
        for speaker, choice in zip(speakers, sampled, strict=True):
            if speaker.sampling.penalises:
                speaker.said.append(choice.token)
        return sampled

    def _meet(self, message: Message) -> None:
        batch = message.batch
        for slot, sampling, rows in zip(batch.slots, message.samplings, batch.row_ranges, strict=True):
            prompt = message.token_ids[rows].tolist() if sampling.penalises else []
            self._speakers[slot] = Speaker(sampling, prompt)


def sample(logits: torch.Tensor, speakers: Sequence[Speaker], positions: Sequence[int]) -> list[Sampled]:
    """One token per row of `logits` `[sequences, vocab_size]`; `positions` are those of the tokens to come."""
    tokens = logits.argmax(dim=-1).tolist()
    sampled = []
    for row, speaker, position, token in zip(logits, speakers, positions, tokens, strict=True):
        sampling = speaker.sampling
        if sampling.temperature > 0 or sampling.penalises:
            token = _choose(penalised(row.double().cpu(), speaker), sampling, position)
        asked = sampling.logprobs is not None
        sampled.append(Sampled(token, _logprobs(row.double().cpu(), token, sampling.logprobs) if asked else None))
    return sampled


def penalised(logits: torch.Tensor, speaker: Speaker) -> torch.Tensor:
    """Repetition divides logits above 0 and multiplies those below (Keskar et al., arXiv 1909.05858); presence and
    frequency are subtracted, as OpenAI's are. `logits` is `[vocab_size]`."""
    sampling, logits = speaker.sampling, logits.clone()
    if sampling.repetition_penalty != 1:
        seen = torch.tensor([*speaker.prompt, *speaker.said], dtype=torch.int64)
        scores, penalty = logits[seen], sampling.repetition_penalty
        logits[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        said, times = torch.tensor(speaker.said, dtype=torch.int64).unique(return_counts=True)
        logits[said] -= sampling.presence_penalty + sampling.frequency_penalty * times
    return logits


def warped(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """`logits` `[vocab_size]` over a temperature above 0, with -inf for the tokens that may not come.

    The likeliest token always may. Top-p (Holtzman et al., arXiv 1904.09751) keeps the fewest likeliest tokens that
    hold `top_p`, min-p (Nguyen et al., arXiv 2407.01082) those at least `min_p` times as likely as the likeliest.
    """
    scores = (logits - logits.max()) / sampling.temperature  # so that a temperature near 0 gives 0 and -inf, not inf
    if 0 < sampling.top_k < len(scores):
        scores[scores < scores.topk(sampling.top_k).values[-1]] = -math.inf
    if sampling.top_p < 1:
        probabilities = torch.softmax(scores, dim=-1)
        # All that are less likely than this hold less than 1 - top_p together; to sort them, too, would take long.
        scores[probabilities < (1 - sampling.top_p) / len(scores) / 2] = -math.inf
        kept = _allowed(scores)
        probabilities, order = probabilities[kept].sort(descending=True, stable=True)
        before = probabilities.cumsum(0) - probabilities
        scores[kept[order[1:][before[1:] >= sampling.top_p]]] = -math.inf
    if sampling.min_p > 0:
        scores[scores < math.log(sampling.min_p)] = -math.inf  # the likeliest has 0
    return scores


def _choose(logits: torch.Tensor, sampling: Sampling, position: int) -> int:
    if sampling.temperature == 0:
        return int(logits.argmax())
    scores = warped(logits, sampling)
    kept = _allowed(scores)
    cumulative = torch.softmax(scores[kept], dim=-1).cumsum(0)
    point = _uniform(sampling.seed, position) * cumulative[-1]
    return int(kept[torch.searchsorted(cumulative, point, right=True).clamp(max=len(kept) - 1)])


def _allowed(scores: torch.Tensor) -> torch.Tensor:
    return scores.isfinite().nonzero().squeeze(-1)


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that the seed and the position fix."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def _logprobs(logits: torch.Tensor, token: int, count: int) -> tuple[tuple[int, float], ...]:
    """Of the model's own distribution, before penalties and temperature."""
    logprobs = torch.log_softmax(logits, dim=-1)
    likeliest = logprobs.topk(min(count, len(logprobs))).indices.tolist()
    return tuple((one, float(logprobs[one])) for one in (token, *likeliest))

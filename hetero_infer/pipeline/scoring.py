"""The log-probabilities of a prompt's own tokens: what a text is evaluated by. In: hidden states of the last stage."""

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from hetero_infer.pipeline.message import Message


def prompt_logprobs(
    message: Message, logits: Callable[[torch.Tensor], torch.Tensor], rows_at_once: int
) -> list[tuple[float, ...]]:
    """Of each sequence of `message` that asks for them: of its prompt's tokens but the first, each given those before.

    `message.rows` are hidden states `[live_rows, hidden_size]`, of which `logits` makes `[rows, vocab_size]`. A prompt
    has many more rows than tokens are sampled in a micro-batch, and the plan counts logits of those only.
    """
    batch = message.batch
    scored: list[tuple[float, ...]] = [()] * batch.num_sequences
    for number, sampling in enumerate(message.samplings):
        if sampling.prompt_logprobs:
            rows = batch.row_ranges[number]
            hidden = message.rows[rows][:-1].split(rows_at_once)
            targets = message.token_ids[rows][1:].long().to(message.rows.device).split(rows_at_once)
            losses = [
                cross_entropy(logits(part).float(), target, reduction="none")
                for part, target in zip(hidden, targets, strict=True)
            ]
            scored[number] = tuple((-torch.cat(losses)).tolist())
    return scored

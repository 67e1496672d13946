"""Perplexity of a text under a model: the quality that a plan is held to."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from hetero_infer.checkpoint.local_model import LocalModel
from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.checkpoint.text import read_prose, read_tokens
from hetero_infer.spec import InputError

MAX_CONTEXT_TOKENS = 512


@dataclass(frozen=True)
class Perplexity:
    """Mean loss over `scored_tokens`, the text being cut into windows of `context_tokens` that begin without a past.

    The first token of a window is given, not predicted. `bytes_per_token` is the whole text's.
    """

    nats_per_token: float
    bytes_per_token: float
    scored_tokens: int
    context_tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        return self.nats_per_token / math.log(2) / self.bytes_per_token


def measure_perplexity(
    model: LocalModel, folder: ModelFolder, text: Path, context_tokens: int | None = None
) -> Perplexity:
    """Of the whole text, window after window; `folder` has the tokenizer."""
    context_tokens = context_tokens or min(MAX_CONTEXT_TOKENS, model.spec.max_position_embeddings)
    tokens = read_tokens(folder, text)
    windows = [window for window in tokens.split(context_tokens) if len(window) > 1]
    if not windows:
        raise InputError(f"text {text}: it has {len(tokens)} tokens; perplexity needs at least 2")
    scored = sum(len(window) - 1 for window in windows)
    total = sum(mean_loss(model, window[None]) * (len(window) - 1) for window in windows)
    num_bytes = len(read_prose(text).encode())
    return Perplexity(total / scored, num_bytes / len(tokens), scored, context_tokens)


def mean_loss(model: LocalModel, windows: torch.Tensor) -> float:
    """Nats per predicted token over `[windows, tokens]`, one window at a time."""
    losses = [
        cross_entropy(model.logits(window[None])[0, :-1].float(), window[1:].to(model.device)).item()
        for window in windows
    ]
    return sum(losses) / len(losses)

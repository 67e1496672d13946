"""How a text is scored: the windows in which it goes through a model, and the perplexity that their losses make.

In: a text as tokens, context and stride. Out: `Window`s, and a `Perplexity` of the nats that each window's scored
tokens cost, whoever computed them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

from hetero_infer.spec.errors import InputError
from hetero_infer.spec.files import digest_of

MAX_CONTEXT_TOKENS = 512
MOST_NATS = 709  # e to the power of more is no float


@dataclass(frozen=True)
class TokenisedText:
    """`ends[i]` bytes of the text stand in the tokens up to token `i`; a token may be a part of a character."""

    path: Path
    tokens: tuple[int, ...]
    ends: tuple[float, ...]
    digest: str

    @classmethod
    def of(
        cls, path: Path, text: str, tokens: Sequence[int], ends: Sequence[int] | None, *, model: Path, vocab_size: int
    ) -> "TokenisedText":
        """`ends` count characters. Where they are not known, every token gets the same share of the bytes."""
        if max(tokens, default=0) >= vocab_size:
            raise InputError(
                f"model {model}: its tokenizer gives the id {max(tokens)} for the text {path}, and the model has "
                f"{vocab_size}; put the tokenizer there that belongs to it"
            )
        if ends is None or not any(ends):
            ends = [len(text)] * len(tokens)
        return cls(path, tuple(tokens), _in_bytes(text, ends), digest_of(text))


def _in_bytes(text: str, ends: Sequence[int]) -> tuple[float, ...]:
    """Tokens that end together are parts of one character: they share its bytes."""
    begin, num_bytes = 0, 0.0
    in_bytes: list[float] = []
    for end, together in groupby(accumulate(ends, max)):
        count = len(list(together))
        size = len(text[begin:end].encode())
        in_bytes += [num_bytes + size * part / count for part in range(1, count + 1)]
        begin, num_bytes = end, num_bytes + size
    return tuple(in_bytes)


@dataclass(frozen=True)
class Window:
    """The text's tokens from `start` to `stop`, of which those from `first_scored` on are scored."""

    start: int
    first_scored: int
    stop: int


@dataclass(frozen=True)
class Evaluation:
    """Of a text, in windows of `context_tokens` that begin `stride_tokens` after each other, the last one as long as
    the text is.

    Each token is scored once, in the first window that has it, with at least context - stride tokens before it. The
    first token of the text has none and is given; so is, where the stride is the whole context, that of each window.
    """

    text: TokenisedText
    context_tokens: int
    stride_tokens: int

    @classmethod
    def of(
        cls, text: TokenisedText, most_tokens: int, context_tokens: int | None, stride_tokens: int | None
    ) -> "Evaluation":
        """`most_tokens` is what the model, or the plan it runs by, has room for."""
        if len(text.tokens) < 2:
            raise InputError(f"text {text.path}: it has {len(text.tokens)} tokens; perplexity needs at least 2")
        context = min(MAX_CONTEXT_TOKENS, most_tokens) if context_tokens is None else context_tokens
        if not 2 <= context <= most_tokens:
            raise InputError(
                f"a context of {context} tokens: it must be from 2 to {most_tokens}, the model's positions or, over a "
                "pipeline, its plan's prompt_tokens if they are fewer"
            )
        stride = context if stride_tokens is None else stride_tokens
        if not 1 <= stride <= context:
            raise InputError(f"a stride of {stride} tokens: it must be from 1 to {context}, the context")
        return cls(text, context, stride)

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        windows, scored = [], 1
        for start in range(0, len(self.text.tokens), self.stride_tokens):
            stop = min(start + self.context_tokens, len(self.text.tokens))
            windows.append(Window(start, max(scored, start + 1), stop))
            scored = stop
            if stop == len(self.text.tokens):
                break
        return tuple(window for window in windows if window.first_scored < window.stop)

    def perplexity(self, nats: Iterable[Sequence[float]]) -> "Perplexity":
        """From the nats of each window's scored tokens, in order."""
        total, scored_tokens, scored_bytes = 0.0, 0, 0.0
        for window, losses in zip(self.windows, nats, strict=True):
            if not all(map(math.isfinite, losses)):
                raise InputError(
                    f"text {self.text.path}: for its tokens {window.start} to {window.stop - 1} the model gives "
                    "probabilities that are no numbers; a weight is broken, or too large for the device's floats"
                )
            total += math.fsum(losses)
            scored_tokens += window.stop - window.first_scored
            scored_bytes += self.text.ends[window.stop - 1] - self.text.ends[window.first_scored - 1]
        return Perplexity(
            total / scored_tokens,
            scored_tokens,
            scored_bytes,
            self.context_tokens,
            self.stride_tokens,
            self.text.digest,
        )


@dataclass(frozen=True)
class Perplexity:
    """Mean loss over `scored_tokens`. `scored_bytes` are those that they stand for, without those of given tokens."""

    nats_per_token: float
    scored_tokens: int
    scored_bytes: float
    context_tokens: int
    stride_tokens: int
    text_digest: str

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats_per_token) if self.nats_per_token < MOST_NATS else math.inf

    @property
    def bits_per_byte(self) -> float:
        return self.nats_per_token * self.scored_tokens / math.log(2) / self.scored_bytes

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}

"""`Workload`: what is served at once, and the micro-batch sizes worth considering for it."""

from dataclasses import dataclass
from enum import StrEnum

from hetero_infer.spec.errors import InputError

KV_BLOCK_TOKENS = 64  # KV cache slots are whole blocks, and attention runs over whole blocks

MOST_SEQUENCES = 4096  # at once: the planner tries every micro-batch size


def round_up_to_block(tokens: int) -> int:
    return -(-tokens // KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS


class Phase(StrEnum):
    """A prompt is worked through once (prefill), then tokens come one by one (decode)."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True)
class Workload:
    """`batch_size` sequences, each of `prompt_tokens`, each continued by `new_tokens`."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "prompt_tokens", "new_tokens"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"workload: {name} = {value!r}, must be a whole number and at least 1")
        if self.batch_size > MOST_SEQUENCES:
            raise InputError(f"workload: batch_size = {self.batch_size}, at most {MOST_SEQUENCES}; serve them in turn")

    @property
    def cache_tokens(self) -> int:
        """KV cache entries a sequence needs: the last token generated is never fed back."""
        return self.prompt_tokens + self.new_tokens - 1

    def refuse_beyond(self, max_positions: int) -> None:
        """The model has no position for a token after `max_positions`."""
        if self.cache_tokens > max_positions:
            raise InputError(
                f"workload: {self.prompt_tokens} prompt and {self.new_tokens} new tokens pass the model's "
                f"{max_positions} positions; plan for fewer"
            )

    @property
    def slot_tokens(self) -> int:
        """KV cache entries a slot really has: whole blocks."""
        return round_up_to_block(self.cache_tokens)

    @property
    def micro_batch_sizes(self) -> tuple[int, ...]:
        """Every ⌈B/m⌉, m = 1..B, largest first: other sizes only make the last micro-batch smaller."""
        return tuple(sorted({-(-self.batch_size // m) for m in range(1, self.batch_size + 1)}, reverse=True))

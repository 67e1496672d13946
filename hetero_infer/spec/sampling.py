"""`Sampling`: how a request wants its tokens chosen. Requests carry it to the last stage."""

from dataclasses import dataclass

from hetero_infer.spec.errors import InputError

MOST_LOGPROBS = 20  # of the likeliest tokens that may be reported with each
RANGES = {
    "temperature": (0, 100),
    "top_k": (-1, 2**31 - 1),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "seed": (-(2**63), 2**63 - 1),
}


@dataclass(frozen=True)
class Sampling:
    """Every default asks for nothing: the likeliest token of the model's own logits.

    `temperature` 0 is greedy. `top_k` below 1, `top_p` 1 and `min_p` 0 keep every token. `repetition_penalty` counts
    prompt and generated tokens, the other two penalties the generated ones. `logprobs` says how many of the likeliest
    tokens are reported with each token's own log-probability; None reports nothing. `prompt_logprobs` asks for the
    log-probability of every token of the prompt, given those before it, but the first.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    prompt_logprobs: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} = {value}: a number from {low} to {high}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise InputError(f"logprobs = {self.logprobs}: a number from 0 to {MOST_LOGPROBS}")

    @property
    def penalises(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

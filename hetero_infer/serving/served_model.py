"""`ServedModel`: what a request is checked against and turned into text with."""

from dataclasses import dataclass
from pathlib import Path

from hetero_infer.serving.tokenizer import Tokenizer
from hetero_infer.spec import ModelSpec, Plan, Workload


@dataclass(frozen=True)
class ServedModel:
    """`prompt_tokens` and `cache_tokens` are the plan's: the longest prompt that its messages are made for, and the KV
    cache entries of one sequence, one less than its prompt and new tokens."""

    name: str
    vocab_size: int
    stop_ids: tuple[int, ...]
    prompt_tokens: int
    cache_tokens: int
    tokenizer: Tokenizer | None = None

    @classmethod
    def load(cls, folder: Path, plan: Plan) -> "ServedModel":
        """Takes seconds where it loads a tokenizer."""
        return cls.of_lengths(folder, plan.workload)

    @classmethod
    def of_lengths(cls, folder: Path, most: Workload) -> "ServedModel":
        """As a plan for `most` would serve it."""
        spec = ModelSpec.from_folder(folder)
        return cls(
            name=folder.resolve().name,
            vocab_size=spec.vocab_size,
            stop_ids=spec.eos_token_ids,
            prompt_tokens=most.prompt_tokens,
            cache_tokens=most.cache_tokens,
            tokenizer=Tokenizer.from_folder(folder),
        )

    @property
    def context_tokens(self) -> int:
        """Prompt and new tokens of one request: the last token generated is never fed back."""
        return self.cache_tokens + 1

    def text_of_token(self, token: int) -> str | None:
        return self.tokenizer.text_of_token(token) if self.tokenizer else None

    def name_of_token(self, token: int) -> str:
        """Its text where it has one of its own."""
        text = self.text_of_token(token)
        return f"token_id:{token}" if text is None else text

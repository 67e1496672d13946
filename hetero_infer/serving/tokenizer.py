"""`Tokenizer`: text ↔ token ids, from the model folder's ``tokenizer.json``. The only place that loads one."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from hetero_infer.spec import InputError


class Tokenizer:
    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer | None":
        """None where the folder has none: then requests must give token ids."""
        path = folder / "tokenizer.json"
        if not path.exists():
            return None
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the tokenizers package raises nothing narrower
            raise InputError(f"tokenizer {path}: cannot be used ({error})") from error

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

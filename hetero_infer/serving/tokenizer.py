"""`Tokenizer`: text ↔ token ids, from the model folder's ``tokenizer.json``. The only place that loads one."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers


class Tokenizer:
    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer | None":
        """None where the folder has none: then requests must give token ids."""
        path = folder / "tokenizer.json"
        return cls(tokenizers.Tokenizer.from_file(str(path))) if path.exists() else None

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

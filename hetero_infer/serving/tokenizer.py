"""`Tokenizer`: text ↔ token ids, and conversations → text, as `transformers` does both. The only place that loads one.

transformers takes torch along where it finds it. A supervisor has none and shall get none.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from hetero_infer.spec import InputError
from hetero_infer.spec.errors import brief
from hetero_infer.spec.model import TOKENIZER_FILES

WITHOUT_TORCH = {"USE_TORCH": "0", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
NO_CHARACTER = "\ufffd"  # what the bytes of a character decode to while some are missing
ANCHOR = "a"  # some tokenizers drop the space of a text's first token


class Tokenizer:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._num_ids = max(tokenizer.get_vocab().values(), default=-1) + 1  # a model may have more than its tokenizer
        self._anchor = self.encode(ANCHOR, is_complete=True)[-1:]
        self._text_of_anchor = self.decode(self._anchor, skip_special_tokens=False)

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer | None":
        """None where the folder has none: then requests must give token ids.

        A ``tokenizer.json`` is read where there is one, else the files of the tokenizer's own kind. No code of the
        folder runs, and nothing is fetched.
        """
        if not any((folder / name).exists() for name in TOKENIZER_FILES):
            return None
        transformers = _transformers()
        is_fast = (folder / "tokenizer.json").exists()
        try:
            if is_fast and not (folder / "tokenizer_config.json").exists():
                return cls(transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")))
            return cls(
                transformers.AutoTokenizer.from_pretrained(
                    folder, use_fast=is_fast, local_files_only=True, trust_remote_code=False
                )
            )
        except Exception as error:  # tokenizers raises nothing narrower
            raise InputError(
                f"model {folder}: transformers cannot load its tokenizer ({brief(error)}); mend or replace the "
                "tokenizer's files, or remove them all and send token ids"
            ) from error

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def encode(self, text: str, is_complete: bool = False) -> list[int]:
        """With what the tokenizer puts before or after a text, a BOS for example, unless it `is_complete`."""
        return self._tokenizer.encode(text, add_special_tokens=not is_complete)

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int] | None]:
        """Of a whole text, nothing added; and the characters that each token ends after, where the tokenizer tells."""
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=self._tokenizer.is_fast, verbose=False
        )
        return encoded.input_ids, [end for _, end in encoded.offset_mapping] if self._tokenizer.is_fast else None

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(
            [token for token in tokens if token < self._num_ids],
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
            spaces_between_special_tokens=False,
        )

    def text_of_token(self, token: int) -> str | None:
        """Inside of a text; None for a part of a character."""
        text = self.decode([*self._anchor, token], skip_special_tokens=False)[len(self._text_of_anchor) :]
        return None if NO_CHARACTER in text else text

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The conversation as the model was taught to read it, up to where it answers. Complete: has its own BOS.

        Raises `InputError` where the template has no form for it.
        """
        try:
            return self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except Exception as error:  # whatever the template's own code comes upon
            raise InputError(f"the model's chat template has no form for these messages ({error})") from error


def _transformers() -> ModuleType:
    before = {name: os.environ.get(name) for name in WITHOUT_TORCH}
    if "torch" not in sys.modules:
        os.environ.update(WITHOUT_TORCH)
    try:
        import transformers
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    return transformers

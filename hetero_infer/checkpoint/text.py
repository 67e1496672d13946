"""Text files as tokens, by the model folder's own tokenizer. No special token is added.

A file whose name ends in ``.jsonl`` has a text in each line, ``{"text": "…"}``, other keys beside it being of no
interest; a blank line stands between them, as between the parts of a text file.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer

from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.spec import InputError
from hetero_infer.spec.errors import brief
from hetero_infer.spec.fields import read_some_fields
from hetero_infer.spec.files import digest_of, read_text
from hetero_infer.spec.model import TOKENIZER_FILES

NUM_WINDOWS = 32
WINDOW_TOKENS = 256


def read_tokens(folder: ModelFolder, text: Path) -> torch.Tensor:
    """The whole text file as token ids, int64 `[tokens]`."""
    if not any((folder.path / name).exists() for name in TOKENIZER_FILES):
        raise InputError(f"model {folder.path}: no tokenizer there, so the text {text} can't be read with it")
    try:
        encode = _encoder(folder.path)
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise InputError(
            f"model {folder.path}: its tokenizer cannot be loaded ({brief(error)}), so the text {text} can't be read"
        ) from error
    tokens = torch.tensor(encode(read_prose(text)), dtype=torch.int64)
    if len(tokens) and tokens.max() >= folder.spec.vocab_size:
        raise InputError(
            f"model {folder.path}: its tokenizer gives the id {tokens.max()} for the text {text}, and the model has "
            f"{folder.spec.vocab_size}; put the tokenizer there that belongs to it"
        )
    return tokens


def read_prose(path: Path) -> str:
    """What a text file or the lines of a JSONL file say."""
    content = read_text(path, "text")
    if path.suffix != ".jsonl":
        return content
    lines = enumerate(content.split("\n"), 1)  # splitlines() would also cut within a JSON string
    return "\n\n".join(_text_of(line, f"text {path}, line {number}") for number, line in lines if line.strip())


def _text_of(line: str, where: str) -> str:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{where}: not JSON ({error}); each line is like {{"text": "…"}}') from error
    text = str(read_some_fields(content, {"text": str}, where)["text"])
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(f"{where}: half of a surrogate pair is no character; take the \\ud… out")
    return text


def _encoder(path: Path) -> Callable[[str], list[int]]:
    """From ``tokenizer.json``, else by transformers from the files of the tokenizer's own kind."""
    if (path / "tokenizer.json").exists():
        fast = Tokenizer.from_file(str(path / "tokenizer.json"))
        return lambda text: fast.encode(text, add_special_tokens=False).ids
    from transformers import AutoTokenizer  # late: what runs a model does without

    slow = AutoTokenizer.from_pretrained(path, use_fast=False, local_files_only=True, trust_remote_code=False)
    return lambda text: slow.encode(text, add_special_tokens=False, verbose=False)


@dataclass(frozen=True, eq=False)
class CalibrationWindows:
    """Pieces of a calibration text: `token_ids`, int64 `[windows, tokens]`."""

    token_ids: torch.Tensor

    @cached_property
    def digest(self) -> str:
        return digest_of({"shape": list(self.token_ids.shape)}, self.token_ids.numpy().tobytes())

    @classmethod
    def from_text(
        cls,
        folder: ModelFolder,
        text: Path,
        num_windows: int = NUM_WINDOWS,
        window_tokens: int = WINDOW_TOKENS,
    ) -> "CalibrationWindows":
        """Windows spread evenly over the text, fewer where they would overlap, none longer than the model's context."""
        window_tokens = min(window_tokens, folder.spec.max_position_embeddings)
        tokens = read_tokens(folder, text)
        if len(tokens) < window_tokens:
            raise InputError(
                f"calibration text {text}: it has {len(tokens)} tokens and a window needs {window_tokens}; "
                "give a longer text"
            )
        num_windows = min(num_windows, len(tokens) // window_tokens)
        spread = (len(tokens) - window_tokens) / max(1, num_windows - 1)
        starts = [int(spread * window) for window in range(num_windows)]
        return cls(torch.stack([tokens[start : start + window_tokens] for start in starts]))

"""Text files as tokens, by the model folder's own tokenizer. No special token is added."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer

from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.spec import InputError
from hetero_infer.spec.errors import brief
from hetero_infer.spec.evaluation import TokenisedText
from hetero_infer.spec.files import digest_of
from hetero_infer.spec.model import TOKENIZER_FILES
from hetero_infer.spec.prose import read_prose

NUM_WINDOWS = 32
WINDOW_TOKENS = 256


def read_tokens(folder: ModelFolder, text: Path) -> torch.Tensor:
    """The whole text file as token ids, int64 `[tokens]`."""
    return torch.tensor(read_tokenised(folder, text).tokens, dtype=torch.int64)


def read_tokenised(folder: ModelFolder, text: Path) -> TokenisedText:
    if not any((folder.path / name).exists() for name in TOKENIZER_FILES):
        raise InputError(f"model {folder.path}: no tokenizer there, so the text {text} can't be read with it")
    try:
        encode = _encoder(folder.path)
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise InputError(
            f"model {folder.path}: its tokenizer cannot be loaded ({brief(error)}), so the text {text} can't be read"
        ) from error
    content = read_prose(text)
    tokens, ends = encode(content)
    return TokenisedText.of(text, content, tokens, ends, model=folder.path, vocab_size=folder.spec.vocab_size)


def _encoder(path: Path) -> Callable[[str], tuple[list[int], list[int] | None]]:
    """From ``tokenizer.json``, else by transformers from the files of the tokenizer's own kind, which do not tell where
    in the text a token ends."""
    if (path / "tokenizer.json").exists():
        fast = Tokenizer.from_file(str(path / "tokenizer.json"))

        def encode(text: str) -> tuple[list[int], list[int]]:
            encoding = fast.encode(text, add_special_tokens=False)
            return encoding.ids, [end for _, end in encoding.offsets]

        return encode
    from transformers import AutoTokenizer  # late: what runs a model does without

    slow = AutoTokenizer.from_pretrained(path, use_fast=False, local_files_only=True, trust_remote_code=False)
    return lambda text: (slow.encode(text, add_special_tokens=False, verbose=False), None)


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

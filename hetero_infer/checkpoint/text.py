"""Text files as tokens, by the model folder's own tokenizer. No special token is added."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer

from hetero_infer.checkpoint.model_folder import ModelFolder
from hetero_infer.spec import InputError
from hetero_infer.spec.files import digest_of, read_text

NUM_WINDOWS = 32
WINDOW_TOKENS = 256


def read_tokens(folder: ModelFolder, text: Path) -> torch.Tensor:
    """The whole text file as token ids, int64 `[tokens]`."""
    path = folder.path / "tokenizer.json"
    if not path.exists():
        raise InputError(f"model {folder.path}: no tokenizer.json there, so the text {text} can't be read with it")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise InputError(f"tokenizer {path}: cannot be used ({error})") from error
    return torch.tensor(tokenizer.encode(read_text(text, "text"), add_special_tokens=False).ids, dtype=torch.int64)


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

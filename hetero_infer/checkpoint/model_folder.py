"""`ModelFolder`: a Hugging Face folder of safetensors, read tensor by tensor."""

import hashlib
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hetero_infer.spec import InputError, ModelSpec


class ModelFolder:
    """The weights under their Hugging Face names. Nothing is read before it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = ModelSpec.from_folder(path)
        self.files = sorted(path.glob("*.safetensors"))
        if not self.files:
            raise InputError(f"model {path}: no *.safetensors there")

    @cached_property
    def digest(self) -> str:
        """Of the config and every weight: 16 hex digits of SHA-256."""
        sha = hashlib.sha256((self.path / "config.json").read_bytes())
        for file in self.files:
            with file.open("rb") as stream:
                sha.update(hashlib.file_digest(stream, "sha256").digest())
        return sha.hexdigest()[:16]

    @cached_property
    def _file_of(self) -> dict[str, Path]:
        names = {}
        for file in self.files:
            try:
                with safe_open(file, "pt") as tensors:
                    names |= dict.fromkeys(tensors.keys(), file)
            except (SafetensorError, OSError) as error:
                raise InputError(f"model file {file}: not a whole safetensors file ({error})") from error
        return names

    def tensor(self, name: str) -> torch.Tensor:
        if name not in self._file_of:
            raise InputError(f"model {self.path}: the tensor {name} is missing")
        with safe_open(self._file_of[name], "pt") as tensors:
            return tensors.get_tensor(name)

"""`ModelFolder`: a Hugging Face folder of safetensors, read tensor by tensor."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hetero_infer.checkpoint.pieces import read_tensor
from hetero_infer.spec import InputError, ModelSpec
from hetero_infer.spec.files import read_text

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"


class ModelFolder:
    """The weights under their Hugging Face names. Nothing is read before it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = ModelSpec.from_folder(path)
        self.files = self._files()

    def _files(self) -> list[Path]:
        """Those that the index names, else the one file, else all there are."""
        index = self.path / INDEX
        if index.exists():
            files = sorted(self.path / name for name in set(_weight_map(index).values()))
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise InputError(f"model {self.path}: {INDEX} names {', '.join(missing)}, which is not there")
            return files
        whole = self.path / WHOLE
        files = [whole] if whole.is_file() else sorted(filter(Path.is_file, self.path.glob("*.safetensors")))
        if not files:
            other = [file.name for pattern in ("*.bin", "*.pt", "*.gguf") for file in self.path.glob(pattern)]
            way_out = f"; convert {other[0]} with save_pretrained(…, safe_serialization=True)" if other else ""
            raise InputError(f"model {self.path}: no *.safetensors there{way_out}")
        return files

    @cached_property
    def digest(self) -> str:
        """Of the config and every weight: 16 hex digits of SHA-256. Reads every file from end to end."""
        sha = hashlib.sha256((self.path / "config.json").read_bytes())
        for file in self.files:
            with file.open("rb") as stream:
                sha.update(hashlib.file_digest(stream, "sha256").digest())
        return sha.hexdigest()[:16]

    @cached_property
    def _file_of(self) -> dict[str, Path]:
        names = {}
        for file in self.files:
            with _opened(file) as tensors:
                names |= dict.fromkeys(tensors.keys(), file)
        return names

    def tensor(self, name: str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> torch.Tensor:
        """A copy, cast to `dtype`; it does not keep the file mapped.

        A name may stand in the files without its first component: checkpoints of the bare model lack it. What is asked
        for as whole numbers must be stored as these.
        """
        found = next((known for known in (name, name.partition(".")[2]) if known in self._file_of), None)
        if found is None:
            raise InputError(f"model {self.path}: the tensor {name} is missing")
        file = self._file_of[found]
        with _opened(file) as tensors:
            if not tensors.get_slice(found).get_shape():
                raise InputError(f"model {self.path}: the tensor {name} is a single number")
            stored_type = tensors.get_slice(found)[:0].dtype
        if dtype and not dtype.is_floating_point:
            if stored_type != dtype:
                raise InputError(f"model {self.path}: the tensor {name} is {stored_type}, not {dtype}")
            return read_tensor(file, found, dtype, device)
        if not stored_type.is_floating_point:
            raise InputError(f"model {self.path}: the tensor {name} is {stored_type}, not floating point")
        tensor = read_tensor(file, found, dtype, device)
        if not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
            raise InputError(f"model {self.path}: the tensor {name} has NaN or infinite values as {tensor.dtype}")
        return tensor


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"model file {file}: not a whole safetensors file ({error})") from error


def _weight_map(index: Path) -> dict[str, str]:
    try:
        names = json.loads(read_text(index, "model index"))["weight_map"]
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise TypeError("weight_map")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"model index {index}: it has no weight_map from tensors to files ({error!r})") from error
    if any("/" in name or "\\" in name for name in names.values()):
        raise InputError(f"model index {index}: weight_map names files outside the folder")
    return names

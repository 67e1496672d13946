"""Copies of the tensors in a safetensors file, a piece at a time.

Mapped pages count as memory until the file is closed, so it is opened anew for each piece: no tensor is held twice.
"""

from pathlib import Path

import torch
from safetensors import safe_open

PIECE_BYTES = 2**22


def read_tensor(
    file: Path, name: str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Of at least one dimension; cast to `dtype`."""
    with safe_open(file, "pt") as tensors:
        stored = tensors.get_slice(name)
        shape, stored_type = stored.get_shape(), stored[:0].dtype
    tensor = torch.empty(shape, dtype=dtype or stored_type, device=device)
    rows = max(1, PIECE_BYTES // max(1, tensor[:1].numel() * stored_type.itemsize))
    for first in range(0, len(tensor), rows):
        with safe_open(file, "pt") as tensors:
            tensor[first : first + rows] = tensors.get_slice(name)[first : first + rows]
    return tensor

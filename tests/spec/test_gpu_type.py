"""The spec sheet, and how a card that is here finds its line in it."""

import pytest

from hetero_infer.spec.gpu_type import GIB, GPU_TYPES, gpu_type_of


@pytest.mark.parametrize(
    ("driver_name", "gib", "found"),
    [
        ("Tesla T4", 14.75, "t4"),
        ("Tesla P100-PCIE-16GB", 15.9, "p100"),
        ("Tesla P100-PCIE-12GB", 11.9, "p100-12"),
        ("Tesla V100-SXM2-32GB", 31.7, "v100-32"),
        ("Tesla V100-SXM2-16GB", 15.8, "v100-16"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40"),
        ("NVIDIA A100 80GB PCIe", 79.1, "a100-80"),
        ("A100-PCIE-40GB", 39.6, "a100-40"),
        ("NVIDIA A10", 22.0, "a10"),
        ("NVIDIA L4", 22.0, "l4"),
        ("NVIDIA L40S", 44.4, "l40s"),
        ("NVIDIA GeForce RTX 4090", 23.6, "rtx4090"),
        ("NVIDIA H100 80GB HBM3", 79.1, "h100"),
        ("NVIDIA H200", 139.8, "h200"),
    ],
)
def test_a_card_is_known_by_its_name_and_memory(driver_name: str, gib: float, found: str) -> None:
    assert gpu_type_of(driver_name, int(gib * GIB)) is GPU_TYPES[found]


@pytest.mark.parametrize(
    ("driver_name", "gib"),
    [
        ("NVIDIA GeForce RTX 3090 Ti", 24),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16),
        ("NVIDIA GeForce RTX 3060", 8),  # another card of the same name
        ("NVIDIA H100 NVL", 93.6),
        ("NVIDIA L40", 44.4),
        ("NVIDIA A100X", 79),
        ("NVIDIA GeForce RTX 5090", 31.8),
    ],
)
def test_a_card_of_another_kind_is_none_of_ours(driver_name: str, gib: float) -> None:
    assert gpu_type_of(driver_name, int(gib * GIB)) is None


def test_each_line_is_plausible() -> None:
    """Tensor cores are not slower than the others, and a slip by a power of ten would show."""
    for name, gpu in GPU_TYPES.items():
        assert gpu.name == name and 8 * GIB <= gpu.memory_bytes <= 141 * GIB
        assert 5e12 <= gpu.fp32_flops <= gpu.fp16_flops <= 1e15
        assert 1e11 < gpu.bytes_per_s < 5e12

"""`GpuType`: a line of the spec sheet, for a device that nobody has measured yet."""

from dataclasses import dataclass

GIB = 2**30
TERA, GIGA = 1e12, 1e9
BRANDS, VARIANTS = {"NVIDIA", "Tesla", "GeForce"}, {"Ti", "SUPER", "Laptop", "D"}
MEMORY_TOLERANCE = 0.12  # error correction and the driver keep some of it


@dataclass(frozen=True)
class GpuType:
    """What the vendor promises. `fp16_flops` are dense products with float32 sums, on tensor cores where it has them.

    Source: NVIDIA's datasheet of each card, PCIe where it comes in several forms (H100 and H200: SXM). The P4's states
    no fp16: it multiplies in fp32. GeForce: the whitepapers of GA102 and AD102, the 3060 by its tensor cores and clock.
    `cuda_name` is how the driver calls such a card, less the brand.
    """

    name: str
    cuda_name: str
    memory_bytes: int
    fp16_flops: float
    fp32_flops: float
    bytes_per_s: float


def _gpu(name: str, cuda_name: str, gib: int, fp16: float, fp32: float, bandwidth: float) -> GpuType:
    """GiB, TFLOP/s twice, GB/s."""
    return GpuType(name, cuda_name, gib * GIB, fp16 * TERA, fp32 * TERA, bandwidth * GIGA)


GPU_TYPES = {
    gpu.name: gpu
    for gpu in (
        _gpu("t4", "T4", 16, 65, 8.1, 300),
        _gpu("p4", "P4", 8, 5.5, 5.5, 192),
        _gpu("p100-12", "P100", 12, 18.7, 9.3, 549),
        _gpu("p100", "P100", 16, 18.7, 9.3, 732),
        _gpu("v100-16", "V100", 16, 112, 14, 900),
        _gpu("v100-32", "V100", 32, 112, 14, 900),
        _gpu("a10", "A10", 24, 125, 31.2, 600),
        _gpu("a30", "A30", 24, 165, 10.3, 933),
        _gpu("a40", "A40", 48, 149.7, 37.4, 696),
        _gpu("a100-40", "A100", 40, 312, 19.5, 1555),
        _gpu("a100-80", "A100", 80, 312, 19.5, 1935),
        _gpu("l4", "L4", 24, 121, 30.3, 300),
        _gpu("l40s", "L40S", 48, 362, 91.6, 864),
        _gpu("rtx3060", "RTX 3060", 12, 25.5, 12.7, 360),
        _gpu("rtx3090", "RTX 3090", 24, 71, 35.6, 936),
        _gpu("rtx4090", "RTX 4090", 24, 165.2, 82.6, 1008),
        _gpu("h100", "H100", 80, 989, 67, 3350),
        _gpu("h200", "H200", 141, 989, 67, 4800),
    )
}

# A thread with a core of its own: two AVX2 multiply-adds of eight floats a cycle at 2 GHz, and its share of the memory
# where all cores read. `plan` measures CPUs, so this is for a question about one that is not here.
CPU_THREAD = GpuType("cpu", "", 0, 0, 64 * GIGA, 4 * GIGA)


def gpu_type_of(driver_name: str, memory_bytes: int) -> GpuType | None:
    """The type of a card that is here, like ``"Tesla P100-PCIE-16GB"``: by name and memory.

    A Ti or a laptop's card has other figures than the one it is named after: none of ours.
    """
    words = driver_name.replace("-", " ").split()
    if VARIANTS & set(words):
        return None
    name = [word for word in words if word not in BRANDS]
    for gpu in GPU_TYPES.values():
        model = gpu.cuda_name.split()
        if name[: len(model)] == model and abs(memory_bytes / gpu.memory_bytes - 1) < MEMORY_TOLERANCE:
            return gpu
    return None

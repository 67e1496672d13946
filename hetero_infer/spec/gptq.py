"""`GptqOptions`: how GPTQ makes the weights. `[gptq]` of a config; part of what a shard is named by."""

from dataclasses import dataclass

from hetero_infer.spec.errors import InputError


@dataclass(frozen=True)
class GptqOptions:
    """`damping` is the share of the Hessian's mean diagonal that is added to its diagonal. `symmetric`: the zero point
    is the middle of the codes. `act_order`: columns are quantised by how much their inputs vary, the most first, and
    groups are made in that order. `search_scales`: a group's scale may be less than its range asks for, where that
    leaves less error in its weights. `sequential`: a layer is calibrated on what the quantised layers before it make,
    so its weights depend on their choices; else on what the unquantised ones make.
    """

    damping: float = 0.01
    symmetric: bool = False
    act_order: bool = False
    search_scales: bool = True
    sequential: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.damping <= 1:
            raise InputError(f"[gptq] damping = {self.damping:g}: a share of the mean diagonal, from 0 to 1")


PLAIN_GPTQ = GptqOptions()

"""`hetero-infer bench quality`: each file measures one claim about quality and gives a `Section`."""

from collections.abc import Callable, Sequence
from pathlib import Path

from hetero_infer.bench.quality import gptq
from hetero_infer.bench.section import Section

SECTIONS: dict[str, Callable[[Sequence[Path], Path], Section]] = {  # by name, in the order they run
    "gptq": gptq.measure,
}

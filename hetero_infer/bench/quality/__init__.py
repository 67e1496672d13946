"""`hetero-infer bench quality`: each file measures one claim about quality and gives a `Section`."""

from hetero_infer.bench.quality import gptq
from hetero_infer.bench.runner import Measure

SECTIONS: dict[str, Measure] = {  # by name, in the order they run
    "gptq": gptq.measure,
}

"""`hetero-infer bench planner`: each file measures one claim about the planner and gives a `Section`."""

from hetero_infer.bench.planner import baselines, clusters, exactness, helix, large, memory, reality, schedules, streams
from hetero_infer.bench.runner import Measure

SECTIONS: dict[str, Measure] = {  # by name, in the order they run
    "clusters": clusters.measure,
    "exactness": exactness.measure,
    "schedules": schedules.measure,
    "streams": streams.measure,
    "arrivals": streams.measure_trace,
    "baselines": baselines.measure_paper_clusters,
    "published kernels": baselines.measure_published_kernels,
    "random clusters": baselines.measure_random_clusters,
    "reality": reality.measure,
    "held out": helix.measure_holdout,
    "mixes": helix.measure_mixes,
    "large": large.measure,
    "memory": memory.measure,
}

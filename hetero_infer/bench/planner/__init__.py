"""`hetero-infer bench planner`: each file measures one claim about the planner and gives a `Section`."""

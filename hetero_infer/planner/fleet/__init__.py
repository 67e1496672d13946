"""Beyond one pipeline: a cluster cut into replicas, each a pipeline with its share of the batch."""

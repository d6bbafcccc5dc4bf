"""Numbers about pairs by any program, and scores by a model."""

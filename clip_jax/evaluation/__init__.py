"""Judging a model: encode a set once, then zero-shot classification and retrieval on it."""

"""File formats of weights. Each reader yields named tensors, and executes nothing in a file."""

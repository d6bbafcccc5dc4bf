"""Programs as ONNX: a JAX program, operator by operator, in the operators of ONNX."""

from clip_jax.inference.onnx.files import FORMAT, load, write

__all__ = ["FORMAT", "load", "write"]

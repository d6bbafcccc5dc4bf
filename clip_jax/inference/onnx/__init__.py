"""Programs as ONNX: a JAX program, operator by operator, in the operators of ONNX."""

from clip_jax.inference.onnx.files import ENDING, FORMAT, load, write

__all__ = ["ENDING", "FORMAT", "load", "write"]

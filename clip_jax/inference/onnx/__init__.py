"""Models as ONNX graphs: a JAX program, operator by operator, in the operators of ONNX."""

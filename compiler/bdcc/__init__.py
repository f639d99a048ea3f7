"""bdcc compiles a float ONNX CNN to a portable C project with binary weights and low-bit activations."""


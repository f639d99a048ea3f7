"""What is the model? Graph, its shapes, and the ONNX importer."""

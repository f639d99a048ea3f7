# SPDX-License-Identifier: 0BSD
"""What is the model? Graph, its shapes, and the ONNX importer."""

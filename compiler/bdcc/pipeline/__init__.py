# SPDX-License-Identifier: 0BSD
"""From an ONNX file to a measured project: `compile_model` tells the story."""

# SPDX-License-Identifier: 0BSD
"""How is it approximated? Decomposition, quantization, the oracle, the search."""

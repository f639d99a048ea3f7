"""How is it approximated? Decomposition, quantization, the oracle, the search."""

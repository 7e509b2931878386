"""Matrix products with scaled float8 operands: definition, quantization, simulated and stored."""

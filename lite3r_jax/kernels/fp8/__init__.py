"""Matrix products with scaled float8 operands: definition, quantisation, simulated and stored."""

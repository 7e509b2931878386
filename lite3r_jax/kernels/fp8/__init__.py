"""Matrix products with scaled float8 operands: definition, fake quantization, stored weights."""

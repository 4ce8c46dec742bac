"""Private inference on quantized networks."""

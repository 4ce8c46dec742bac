"""The cryptography. Knows tensors of integers; has never heard of a neural network."""

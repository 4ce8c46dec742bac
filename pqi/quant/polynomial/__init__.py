"""Networks with polynomial activations, for homomorphic encryption: fitted, trained, made integer."""

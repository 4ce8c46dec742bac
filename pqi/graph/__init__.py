"""The integer graph: capture from torch, exact operators, range proof, the model and its file."""

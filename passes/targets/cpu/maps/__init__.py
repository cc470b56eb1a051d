"""Tensors with rows and columns: activations, errors, masks."""

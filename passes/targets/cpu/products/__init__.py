"""Convolutions and products of matrices, and the weights that they multiply and change."""

"""Reverse-mode differentiation of the `forward` stage: one table of rules, one walk."""

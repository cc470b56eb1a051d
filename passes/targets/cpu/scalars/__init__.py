"""Few numbers, or a rule for single ones: exponents, shifts, roots, random bits."""

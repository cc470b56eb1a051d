"""`quant_training` to `int_training`: every node by its rule, on mantissas with exponents and proven bounds."""

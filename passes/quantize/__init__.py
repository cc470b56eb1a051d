"""`fp_training` to `quant_training`: one pass a data path, each filling the places whose role it knows."""

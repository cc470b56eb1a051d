"""What measures the project itself, run from a checkout: accuracy, conversions, diffs, steps. Their networks are of models/."""

"""Training a converted folder on a data set: data, rates, metrics, health, and runs that can be interrupted."""

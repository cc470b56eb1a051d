"""What drives a converted folder: sessions, data sets, the training loop and the step benchmark."""

"""What a user measures of a converted folder: time of a step, its operators, fidelity of gradients and of inference."""

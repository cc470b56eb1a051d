"""int_training -> a form for one runtime: each pass takes an inlined model and returns another that computes the same bits."""

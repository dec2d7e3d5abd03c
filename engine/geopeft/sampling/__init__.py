"""Areas and accuracy from a probability sample of points."""

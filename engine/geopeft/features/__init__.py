"""Features of chips that stay the same in a training, kept on the disk so that they are computed once."""

"""One model of several that were trained in different places from the same start."""

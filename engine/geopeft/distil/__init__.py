"""A small, fast model taught by a tuned one on unlabelled rasters: the job `distil`."""

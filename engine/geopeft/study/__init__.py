"""Many trainings of one task, beside each other: which backbone, adapter and decoder suits it."""

"""Two maps or models on the same labels and the same ground."""

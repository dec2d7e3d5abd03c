"""Which labels to draw next, and which to look at again."""

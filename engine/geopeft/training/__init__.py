"""The training loop, its steps, and the processes that help with them."""

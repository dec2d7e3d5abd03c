"""Work on many processes and machines."""

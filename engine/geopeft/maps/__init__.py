"""Maps as files: drawn, kept in parts, put together, and shared out to a cluster."""

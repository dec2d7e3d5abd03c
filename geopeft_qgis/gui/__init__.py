"""Windows. They run the toolbox's algorithms and own no logic."""

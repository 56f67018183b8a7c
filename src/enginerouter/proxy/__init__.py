"""The data path: what passes between a client and an engine."""

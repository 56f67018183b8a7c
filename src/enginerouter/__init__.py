"""enginerouter: one port for a box whose memory holds one heavy LLM engine at a time."""

__version__ = "0.1.0"

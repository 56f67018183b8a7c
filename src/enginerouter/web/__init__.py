"""The HTTP side: listening, the edge every request passes, and the handlers."""

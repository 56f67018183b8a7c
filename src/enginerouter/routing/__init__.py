"""From the name a client gives to the engine and slot that serve it."""

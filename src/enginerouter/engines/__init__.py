"""The engines: how each kind is started, seen ready, stopped and watched."""

"""Answers kept so that a repeated request wakes nothing: which may be (`rules`), under which key (`keys`), and where
(`memory`, `redis_store`). `answers` is what a router asks. Knows no HTTP server, no engines and no swaps.
"""

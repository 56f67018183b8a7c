"""The swap: who is resident, who waits, who goes next, and the walk that makes it so.

Decisions are plain functions over plain data (`policy`, `eviction`, `drain`, `settle`, `circuit`, `eta`);
`coordinator` is the only writer of the state, `walk` the only place that awaits an engine.
"""

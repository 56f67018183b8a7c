"""The data path: headers, the engine's side (upstream), the client's side (downstream). Knows no engines, no swaps."""

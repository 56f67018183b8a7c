"""The configuration: one typed model, from which the loader, the JSON Schema and the reference are made.

`load.load(path)` gives the model or every problem at once; nothing else reads the file.
"""

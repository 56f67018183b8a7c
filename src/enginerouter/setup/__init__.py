"""Making a configuration: from presets, from what runs here, from the files of other programs."""

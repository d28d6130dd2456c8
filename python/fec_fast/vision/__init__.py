"""Vision: networks by name, their weights, and image data sets."""

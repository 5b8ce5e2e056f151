"""The measures: features or images to numbers."""

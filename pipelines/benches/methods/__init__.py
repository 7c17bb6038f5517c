"""Methods beside each other at the same measured saving, over seeds, lengths and circumstances."""

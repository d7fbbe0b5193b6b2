"""A trained model as files that others read, and published models read in."""

"""Pixels and captions to vectors: the frozen image backbone and the caption encoder."""

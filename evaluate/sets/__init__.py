"""Evaluation sets: what a folder or tar is, its images, names, labels and captions."""

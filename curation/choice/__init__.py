"""Clusters and duplicates to a selection, with a reason for every row."""

"""Vectors to levels of clusters: exact, distributed, resumable k-means."""

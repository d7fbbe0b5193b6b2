"""Pairs to embeddings, clusters and a selection."""

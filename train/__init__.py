"""Shards and a selection to a model."""

"""Vectors on disk: written, committed, memory-mapped, verified."""

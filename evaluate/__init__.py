"""A model to numbers, tables and pictures."""

"""The results of curation as plots and galleries."""

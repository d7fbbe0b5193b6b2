"""What curation did, as plots and galleries."""

"""The conductor: what runs, in which order, cached, tracked, submitted."""

"""Raw files on disk to samples, or to rejects with a reason."""

"""The ground: resources, one Ray session, fan-out over shards, SLURM, logs and atomic files."""

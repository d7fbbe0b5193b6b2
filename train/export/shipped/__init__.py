"""Code that travels inside an exported folder; nothing here imports it."""

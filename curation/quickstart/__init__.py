"""The quickstart's pool: emoji drawings with captions, and scenes with exact masks."""

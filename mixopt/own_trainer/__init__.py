"""Trials of the user's own trainer: what the file says of it, how trials are handed out, and how outcomes are read."""

"""Warm starts: runs of an earlier search, or of a table, as evidence for a search over other domains."""

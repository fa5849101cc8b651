"""Searches as jobs on a Ray cluster: `mixopt submit` and its companions."""

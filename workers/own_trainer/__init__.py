"""Runs a trainer of the user's own, or hands trials out and takes outcomes in."""

"""Mirrors of the record for people: the MLflow mirror, the figures, the answer in words. All can be rebuilt from the record at any time."""

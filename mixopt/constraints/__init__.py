"""Limits on a mixture as a whole: how many domains it has, and how far it lies from a given one."""

"""Strategies propose trials. One file each, one protocol (`base`), one contract test."""

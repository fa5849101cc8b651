"""Surrogates predict outcomes of trials that were not run. One file each, one protocol (`base`), one contract test."""

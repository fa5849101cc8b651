"""What to try next: acquisition functions over the surrogates' own Gaussian processes, with exact slopes, and their maximization on the simplex.

Written on NumPy and LAPACK as the processes themselves are. BoTorch has the same functions; why ours, with the measurement, is in docs/decisions.md.
"""

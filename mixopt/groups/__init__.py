"""Groups of domains: paths of levels, given splits, bounds."""

"""How the record lies in the database; `mixopt.history` is what everyone else uses."""

CALIBRATION_PREFIX = "calibration-"
"""Begins the id under which a calibration is recorded beside the searches; ids of searches are hexadecimal digits."""
COMPONENTS_PREFIX = "components-"
"""The same of a family of components."""

"""Documents become token files: `mixopt prepare`."""

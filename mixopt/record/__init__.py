"""How the record lies in the database; `mixopt.history` is what everyone else uses."""

"""From fitted surrogates to an answer: what was measured, constraints on predictions, the pull, the search for the optimum, what holds it."""

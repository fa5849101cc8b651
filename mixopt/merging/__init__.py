"""Whether proxies that were not trained but merged, or averaged in their probabilities, may stand in for trained ones, and what to try where not."""

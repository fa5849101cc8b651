"""When domains change: what an earlier search still says, what has to be measured anew, and what is risked by measuring less."""

"""The commands, grouped by what people do with them. Heavy libraries, and everything of `workers`, are imported inside the functions."""

"""The report: one HTML file from the record."""

"""Features of every run to rows of a regression: aligned with the BOLD, delayed, cleaned, reduced."""

"""Scaling studies: plan, run, fit, suggest."""

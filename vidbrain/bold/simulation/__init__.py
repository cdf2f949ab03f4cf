"""Simulated fMRI with a known truth, written as a scanner and fMRIPrep would leave it."""

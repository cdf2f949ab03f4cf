"""fMRI becomes a chunked store; simulated fMRI becomes files that a scanner would write."""

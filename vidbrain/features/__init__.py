"""Models and controls become one row of features for each TR."""

"""Ridge regression on arrays: Gram matrices, many alphas, bands, and estimators with scikit-learn's manners."""

"""What may be said of r, on arrays: nulls, many voxels at once, intervals, noise ceilings, few subjects."""

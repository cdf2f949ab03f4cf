"""Objects, atomic writes and the Zarr policy: how anything reaches a disk or a bucket."""

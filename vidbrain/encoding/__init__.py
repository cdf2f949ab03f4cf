"""Features and BOLD become a correlation, an alpha and a p for each voxel."""

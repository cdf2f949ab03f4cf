"""Which parcel a voxel belongs to: atlases, a parcellation of our own, and series of parcels."""

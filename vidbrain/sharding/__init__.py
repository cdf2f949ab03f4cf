"""Recordings become WebDataset shards of segments, with an index."""

"""Shards become batches of clips, in an order that is a pure function."""

"""Recordings in: game play recorded and replayed, events on the scanner's clock, frames by number."""

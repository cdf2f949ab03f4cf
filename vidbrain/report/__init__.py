"""Maps, curves and one self-contained page."""

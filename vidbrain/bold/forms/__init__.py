"""Files that series come in, and go out to: each format by itself, behind one small protocol."""

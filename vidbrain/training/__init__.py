"""One loop, one place for precision, checkpoints that resume exactly."""

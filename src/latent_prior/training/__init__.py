"""Training: the loop, optimizer, averaged weights, checkpoints and metrics."""

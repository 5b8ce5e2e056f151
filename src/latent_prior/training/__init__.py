"""The training loop, optimizer, averaged weights, checkpoints and metrics of every training script."""

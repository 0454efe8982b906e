"""What is done to gradients and updates around torch's own optimizers."""

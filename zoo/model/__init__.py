"""LightningModules: loss, metrics and optimizer around a network."""

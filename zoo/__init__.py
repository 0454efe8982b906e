"""Inverse imaging as LightningModules; every training job is chosen and sized by `conf/`."""

"""What papers claim, measured here: one file a claim, run by `python -m zoo.reproduce`."""

"""Callbacks that any model can use."""

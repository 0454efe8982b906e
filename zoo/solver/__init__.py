"""Iterative reconstruction through the operators of zoo.physics, without any network."""

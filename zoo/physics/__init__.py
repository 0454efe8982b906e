"""Forward operators of the inverse problems."""

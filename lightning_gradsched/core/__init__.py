"""The thinking: profiles in, a frozen schedule out. Standard library and NumPy only."""

"""Networks, free of any training code."""

"""Image metrics, each with its convention written down."""

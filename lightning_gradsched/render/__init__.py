"""Pictures of a trace. Loads neither torch nor Lightning: ``gradsched report`` starts at once."""

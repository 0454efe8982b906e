"""The subcommands of ``gradsched``, one module each."""

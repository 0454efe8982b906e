"""What a finished run leaves behind: tables, result files, pictures."""

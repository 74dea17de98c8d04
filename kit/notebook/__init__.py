"""What a notebook calls, and its parameters."""

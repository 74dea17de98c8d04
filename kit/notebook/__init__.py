"""TODO notebook."""

"""What everything else is made of; it knows nothing of networks, data or papers."""

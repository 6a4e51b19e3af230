"""promptify."""

"""Small graphs to read, run and copy."""

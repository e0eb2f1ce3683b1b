"""The moves of a run: their contract, the scripts, the record of a run, the connection."""

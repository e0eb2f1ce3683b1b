"""What a log tells: where a thread stands, its state at any checkpoint, how a run ended."""

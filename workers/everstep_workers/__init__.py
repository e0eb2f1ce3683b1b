"""Who does it: the worker process, its slots, its pool, its face towards RQ's tools."""

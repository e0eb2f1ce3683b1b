"""Indexes and jobs made anew from the logs."""

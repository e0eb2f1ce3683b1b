"""Graphs that run where they are called, and the savers that keep their threads."""

"""Chaos: a sample graph on real workers, faults at random, and a checker that knows nothing of the engine.

load ──► client log ──┐
nodes ─► journal ─────┼──► evidence ──► checking ──► verdict
Redis ─► dump ────────┘
plan (seed) ──► strikes
"""

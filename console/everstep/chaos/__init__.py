"""Chaos: a sample graph on real workers, faults at random, and a checker that knows nothing of the engine.

    load ──► client log ──┐                                  evidence   what was asked, what ran, what is stored
    nodes ─► journal ─────┼──► evidence ──► checker ──► verdict
    Redis ─► dump ────────┘                                  checker    laws I1 to I16 over it; reads entries, no more
    plan (seed) ──► faults

`evidence`, `folding`, `stories`, `laws`, `crossing`, `model` and `checker` import nothing of the scheduler, of the
workers, or of what replays logs: a mistake there must not be repeated here.
"""

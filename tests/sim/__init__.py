"""The deterministic simulation: real worker code as seeded coroutines on a model of the store, with a virtual clock.

    model.py     the store: what the scripts of the moves do, in plain Python
    gates.py     its limits
    world.py     the clock, the dice, the coroutines; what goes wrong, and when
    worker.py    the worker process: its real threads' code, each a coroutine
    wire.py      what stands between a process and the store: every call may fail, be late, or come twice
    graphs.py    graphs whose result tells the order of their steps
    stories.py   what producers do with them
    judging.py   what must hold while a schedule runs and when all is at rest
    limiting.py  what must hold of limits
    mutants.py   defects that must be found

`python -m sim` in `tests/` runs schedules, `python -m sim 17` the one of that seed again, with what happened.
"""

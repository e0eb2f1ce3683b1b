"""The benchmark: everstep beside a bare loop and its peers, on one embedded server, in one run.

    python -m bench [--quick] [--json FILE] [--only NAME ...]

Nodes do nothing but make 1 KB of fresh random bytes, so that only the engines' overhead counts. Everything is measured
in rounds, alternated, and told as a median with its spread: read ratios, not absolutes. `docs/performance.md` explains.
"""

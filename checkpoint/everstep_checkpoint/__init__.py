"""What happened: the log of a thread, its entries, its codec, its deltas.

Reads, verifies and replays any everstep log without a graph's code. Knows nothing of graphs, jobs or workers.
"""

"""The benchmark: everstep beside a bare loop and its peers, on one server, in one run: `everstep bench`.

commands/bench.py ──► drive.run(Order) ──► Outcome: rows, document
    drive      which workloads, how large, what is written down
    place      where: a server of its own, or a namespace of its own on the user's; processes: who works
    floor      the bare loop
    chains wide chat waiting mixed backlog partitions fair counting quiet     the workloads: from Place to rows
    peers      others beside us, each a script of its own that imports nothing of ours
    rows       a number in several rounds, its target, its noise; plot: the picture

Nodes do nothing but make 1 KB of fresh random bytes, so only the engines' overhead counts. Everything is measured in
rounds and told as a median with its spread: read ratios, not absolutes. `docs/performance.md` explains.
"""

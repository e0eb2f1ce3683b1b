"""The checker of chaos. It imports how an entry's fields are read and hashed, and nothing else of everstep: no script,
no worker, not even what replays logs. A mistake there must not be repeated here; an import contract holds it to that.

    evidence ──► stories (each log, with states folded anew) ──► laws, crossing, model ──► checker: the verdict
"""

"""How an inline run begins: by a start of its own, or by taking up one of the same input whose caller is gone.

    start ──► started, queued                 its own run
          ├─► resumed                         the run under way has this very input, and nobody drives it any more
          └─► equal ──(its caller gives its word anew)──► alive: a second input, queued as any other
                  └──(its word runs out, and nobody was away meanwhile)──► gone: resumed

In one process it is known at once who drives what; of another process, a third of a lease tells that it lives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING

from ..moves.contract import Caller, Offer, Start, Started
from ..steps.replacing import begun

if TYPE_CHECKING:
    from .savers import Saver

POLL_S = 0.1
LEFT = "left"
Insist = Callable[[Callable[[], Started]], Started]


def begin(saver: Saver, start: Start, offer: Offer, insist: Insist, left: Event, *, only: bool = False) -> Started:
    """Begin the run of `offer.caller`, or take one up. `only`: take one up, else nothing. Status LEFT: the caller went.

    Raises ServerError, Conflict, Trimmed.
    """
    keeper, seen = saver.keeper, dict[str, int]()
    start = replace(start, fields={**start.fields, "by": offer.caller})
    while not left.is_set():
        caller = Caller(offer.caller, keeper.callers if keeper is not None else (), seen, only)

        def move(each: Start, caller: Caller = caller) -> Started:
            return insist(lambda: saver.moves.start(each, offer, caller))

        answer = begun(saver.log, start, move)
        if answer.status != "equal":
            return answer
        seen.setdefault(answer.caller, answer.till)
        if keeper is not None:
            keeper.sweep()
        left.wait(min(POLL_S, saver.lease_ms / 3000))
    return Started(LEFT)

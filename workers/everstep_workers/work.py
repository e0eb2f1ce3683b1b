"""What the threads of a worker process share: what it holds, and the way of an outcome to Redis.

claim ──► Held ──load──► call ──► take_right ──► commit ──► the next leases, spread
            │                        │ no: a timeout, a stop or a lost lease came first; the result is dropped
            └── Unserved ──► parked
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from everstep_checkpoint.errors import LogError, ServerError
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_scheduler.graph.durability import COMMIT
from everstep_scheduler.graph.options import SUSPECT
from everstep_scheduler.graph.spec import GraphSpec
from everstep_scheduler.moves.connection import Client, connect
from everstep_scheduler.moves.contract import AWAY_S, JOIN_NODE, LEASE_MS, START_NODE, Answer, Commit, Lease, Offer
from everstep_scheduler.moves.live import LiveWriter
from everstep_scheduler.moves.plain import is_plain
from everstep_scheduler.moves.promises import Promises
from everstep_scheduler.moves.redismoves import RedisMoves, Scripts
from everstep_scheduler.recovery.recovery import Recovery
from everstep_scheduler.steps.caches import RedisCache
from everstep_scheduler.steps.failpoints import reach
from everstep_scheduler.steps.outcome import Unserved
from everstep_scheduler.steps.perform import Attempt, Performer, Result
from everstep_scheduler.steps.voice import through

from .line import LOST, Line, LineLog
from .patience import Hopeless, Patience
from .pulse import Pulse
from .slots import OFFER_MAX, Done, Held, Slots, Tally
from .tempo import Tempo

REST_S = 0.5
TOGETHER_MAX = 16

log = logging.getLogger("everstep.worker")


@dataclass(frozen=True)
class Setup:
    """What a worker process is told. `idle_exit_s`: drain after so long without work; 0: never. `pooled`: it has a
    pool, which sees to suspects.
    """

    url: str
    name: str
    queues: tuple[str, ...]
    keys: Keys = field(default_factory=Keys)
    concurrency: int = 10
    grace_s: float = 30.0
    lease_ms: int = LEASE_MS
    serves_parked: bool = True
    idle_exit_s: float = 0.0
    pooled: bool = False


def with_nested(graphs: Mapping[str, GraphSpec]) -> dict[str, GraphSpec]:
    """These graphs and all that are nested in them, by name."""
    return {each.name: each for graph in graphs.values() for each in graph.family}


class Settled(NamedTuple):
    """An attempt that came to something, and the commit that tells it."""

    done: Done
    commit: Commit


class Posted(NamedTuple):
    """Commits under way that left together over a line, with one offer."""

    each: Sequence[Settled]
    offer: Offer
    at: int
    line: Line


def _alike(ready: Sequence[Settled]) -> list[Sequence[Settled]]:
    """Commits in groups that can leave together."""
    if len(ready) == 1:
        return [ready]
    alike, alone = list[Settled](), list[Sequence[Settled]]()
    for each in ready:
        if is_plain(each.commit):
            alike.append(each)
        else:
            alone.append([each])
    return [alike, *alone] if alike else alone


class Runner(Protocol):
    """Where attempts run: the threads for sync nodes, the loop for async ones, which are loaded."""

    def start(self, held: Sequence[Held]) -> None: ...


class Threads(Runner, Protocol):
    def relieve(self) -> bool: ...


class Stopper(Runner, Protocol):
    def cancel(self, held: Held) -> None: ...


class Work:
    """The shared record of one worker process."""

    hands: Threads
    loop: Stopper
    committer: Callable[[Done], None]
    watch: Callable[[Held], None]

    def __init__(self, setup: Setup, graphs: Mapping[str, GraphSpec], pulse: Pulse | None = None) -> None:
        self.setup = setup
        self.pulse = pulse or Pulse()
        self.roots = graphs  # as they are published; those nested in them are theirs alone
        self.graphs = with_nested(graphs)
        self.slots = Slots(setup.concurrency)
        self.held: dict[str, Held] = {}
        self.tally = Tally()
        self.tempo = Tempo()
        self.draining = threading.Event()
        self.cold = threading.Event()
        self.hungry = False  # the front has not claimed for a while; the next slot is for it
        self.suspended = False
        self.claims = 0
        self._rest_until = 0.0  # no thread could be begun; nothing is claimed for idle slots until then
        self._spare = 1  # for how many idle slots a commit offers beside its own
        self.patience = Patience(setup.url, self._gives_up, self.pulse)
        self.insist = self.patience.insist
        self._clients: list[Client] = []
        shared = self.client()
        self.recovery = Recovery(shared, setup.keys, self.leases, self.patience.say, setup.lease_ms, setup.name)
        self.moves = self._moves(shared)
        self.promises = Promises(shared, setup.keys, setup.url)
        self.live = LiveWriter(lambda: connect(setup.url, connections=2), setup.keys)
        cache, kept = RedisCache(shared, keys=setup.keys), LineLog(shared, self.own_line, setup.keys)
        hears = through(self.live)
        self.performer = Performer(
            self.moves, kept, self.graphs, by=setup.name, listening=hears, cache=cache, slotted=True, parks=True
        )

    def _gives_up(self) -> bool:
        """No more patience with a Redis that is away: at a cold stop, or when draining with nothing in hand."""
        return self.cold.is_set() or (self.draining.is_set() and not self.held)

    # connections

    def client(self, block_s: float = 0.0, answer_s: float | None = None) -> Client:
        """A new client, closed with the process."""
        made = connect(self.setup.url, block_s=block_s, answer_s=answer_s)
        self._clients.append(made)
        return made

    def own_line(self, answer_s: float | None = None) -> Line:
        """A thread's own connection."""
        made = Line(self.setup.url, answer_s)
        self._clients.append(made)
        return made

    def line(self, answer_s: float | None = None) -> RedisMoves:
        """The moves over a thread's own connection."""
        return self._moves(self.own_line(answer_s))

    def hang_up(self, moves: RedisMoves, *clients: Client) -> None:
        """End a thread's connections, which may be silent; it connects anew when it uses them."""
        for client in (moves.scripts.client, *clients):
            client.close()

    def _moves(self, client: Client) -> RedisMoves:
        return RedisMoves(Scripts(client, self.setup.keys, self._rebuild, self.setup.url), patience_s=AWAY_S)

    def _rebuild(self) -> None:
        with self.pulse.rebuilding():
            self.recovery()

    def close(self) -> None:
        self.live.close()
        for client in self._clients:
            client.close()

    # what is held

    def leases(self) -> list[Lease]:
        """The leases that this process holds: what it announces while indexes are rebuilt."""
        return [held.lease for held in list(self.held.values())]

    @property
    def serves(self) -> tuple[str, ...]:
        """`graph:node` names whose parked tasks this process takes."""
        if not self.setup.serves_parked:
            return ()
        return tuple(f"{s.name}:{node}" for s in self.graphs.values() for node in (START_NODE, JOIN_NODE, *s.served))

    @property
    def suspects(self) -> tuple[str, ...]:
        """The queues of suspects that this process sees to."""
        return () if self.setup.pooled else tuple(queue + SUSPECT for queue in self.setup.queues)

    def offer(self, tokens: tuple[str, ...] = (), queues: tuple[str, ...] = ()) -> Offer:
        """What this process offers for, with one token per slot."""
        setup = self.setup
        return Offer(setup.name, tokens, queues or setup.queues, setup.name, setup.lease_ms)

    def admit(self, offer: Offer, leases: Sequence[Lease]) -> list[Held]:
        """The leases that came for an offer; its other slots are free again. While draining they go back at once."""
        spare = self._spare
        if offer.tokens:  # an answer to who offered nothing says nothing of how much work there is
            self._spare = 1
        if not leases:
            self.slots.give(offer.tokens)
            return []
        self.claims += 1
        if len(leases) >= len(offer.tokens):
            self._spare = min(2 * spare, OFFER_MAX)
        else:
            used = {lease.token for lease in leases}
            self.slots.give([token for token in offer.tokens if token not in used])
        fresh = [Held(lease) for lease in leases if lease.token not in self.held]
        self.held.update((held.lease.token, held) for held in fresh)
        if self.draining.is_set():
            self._hand_back(fresh)
            return []
        return fresh

    def _hand_back(self, given: Sequence[Held]) -> None:
        """Release leases that were not begun, uncounted."""
        mine = [held for held in given if held.take_right()]
        self._release(mine, "job")
        self.slots.give_new(len(mine))

    def _release(self, mine: Sequence[Held], to: Literal["job", "lost"]) -> None:
        """Give leases back. Those that Redis does not take are no longer renewed, and run out."""
        tokens = [held.lease.token for held in mine]
        try:
            self.insist(lambda: self.moves.release(self.setup.name, tokens, to))
        except (ServerError, Hopeless) as error:
            log.warning("%d leases are left to run out: %s", len(tokens), error)
        finally:
            for held in mine:
                self.drop(held)

    @property
    def resting(self) -> bool:
        """Could no thread be begun a moment ago?"""
        return time.monotonic() < self._rest_until

    def drop(self, held: Held) -> None:
        """Forget an attempt. Its slot is another matter."""
        self.held.pop(held.lease.token, None)
        self.performer.loader.forget(held.lease)

    # load

    def _read_ahead(self, held: Sequence[Held]) -> None:
        """Read what attempts need that came together. Where that fails, each asks for it when it is loaded."""
        if len(held) < 2:
            return
        try:
            self.performer.loader.ahead([each.lease for each in held if each.lease.graph in self.graphs])
        except Exception as error:  # noqa: BLE001 - each is told of its own when it is loaded; none may take others with it
            log.debug("attempts are loaded one by one: %r", error)

    def load(self, held: Held) -> bool:
        """Load the attempt. False: there is nothing to run, and its slot is free again."""
        reach("claimed")
        try:
            held.attempt = self.insist(self.performer.load, held.lease)
        except Unserved as error:
            self._park(held, error.reason)
        if held.settled:
            self.slots.give_new()
            return False
        reach("loaded")
        return True

    def _park(self, held: Held, reason: str) -> None:
        if held.take_right():
            log.warning("%s: parked: %s", held, reason)
            self.insist(lambda: self.moves.release(self.setup.name, [held.lease.token], "parked", reason))
            self.drop(held)

    def pass_on(self, held: list[Held]) -> None:
        """Attempts that wait in a thread: other threads run them, or they go back while draining, uncounted."""
        if self.draining.is_set():
            self._hand_back(held)
        else:
            self.spread(held)

    def spread(self, fresh: Sequence[Held], keep: int = 0, *, inputs: bool = False) -> list[Held]:
        """Start attempts where they belong. So many of the sync ones are left to the calling thread; or, if it says so,
        the inputs, and no node then. These are for one thread, one behind the other: a thread each would only be in its
        way."""
        self._read_ahead(fresh)
        kept, begun, asleep = list[Held](), list[Held](), list[Held]()
        if inputs and (here := [held for held in fresh if self.is_input(held.lease)]):
            kept, keep, fresh = here, 0, [held for held in fresh if not self.is_input(held.lease)]
        for held in fresh:
            if self._needs_loop(held.lease):
                asleep += [held] if self._loaded(held) else []
            elif len(kept) < keep:
                kept.append(held)
            elif self.is_input(held.lease):
                begun.append(held)
            else:
                self._begin(self.hands, [held])
        if begun:
            self._begin(self.hands, begun)
        if asleep:
            self._begin(self.loop, asleep)
        return kept

    def _begin(self, runner: Runner, held: Sequence[Held]) -> None:
        if self.resting:
            self._hand_back(held)
            return
        try:
            runner.start(held)
        except Exception as error:  # noqa: BLE001 - no thread for it, most likely; others may have one
            log.error("%d tasks are given back: they can't be begun here: %s", len(held), error)
            self._rest_until = time.monotonic() + REST_S
            self._hand_back(held)

    def is_input(self, lease: Lease) -> bool:
        """Is it an input that no router of the user's looks at? That never takes more than a moment."""
        spec = self.graphs.get(lease.graph) if lease.node == START_NODE else None
        return spec is not None and not spec.branches_of(START_NODE)

    def _loaded(self, held: Held) -> bool:
        """Load an attempt for the loop. False: there is nothing to run."""
        try:
            return self.load(held)
        except ServerError as error:
            log.warning("%s: not begun, the process ends: %s", held, error.what)
        except LogError as error:
            self.unreadable(held, error)
            self.slots.give_new()
        except Exception as error:  # noqa: BLE001 - the loop's door: one that can't be loaded must not stop the others
            self.stumbled(held, error)
            self.slots.give_new()
        return False

    def _needs_loop(self, lease: Lease) -> bool:
        spec = self.graphs.get(lease.graph)
        return spec is not None and spec.needs_loop(lease.node)

    # commit

    def posted(self, line: Line, ready: Sequence[Settled], room: int) -> list[Posted]:
        """Send commits, those that can be together, with an offer for so many attempts more. The answers are for
        `came`, and so is what could not be sent."""
        if len(ready) == 1:
            return [self._post(line, ready, self.refill(ready[0].done.own, room))]
        sent = list[Posted]()
        for group in _alike(ready):
            offer = self.refill(sum([done.own for done, _ in group]), room)
            room = max(room - len(offer.tokens), 0)
            sent.append(self._post(line, group, offer))
        return sent

    def _post(self, line: Line, each: Sequence[Settled], offer: Offer) -> Posted:
        try:
            at = line.post(self.moves.command([commit for _, commit in each], offer))
        except Exception as error:  # noqa: BLE001 - each will be told alone, and raise that again
            log.debug("%d commits are not sent together: %s", len(each), error)
            at = LOST
        return Posted(each, offer, at, line)

    def came(self, posted: Posted, raw: object) -> list[Held]:
        """The reply to commits that were posted. Returns what there is to run next. A commit that it does not settle,
        or no reply, is sent again until one does; one that Redis refuses becomes a failure."""
        return self.all_came([(posted, raw)])

    def all_came(self, replies: Sequence[tuple[Posted, object]]) -> list[Held]:
        """Several replies at once. What runs were promised beyond their commits is waited for once."""
        fresh, told = list[Held](), list[Held]()
        for posted, raw in replies:
            fresh += self._came(posted, raw, told)
        self._kept(told)
        return fresh

    def _came(self, posted: Posted, raw: object, told: list[Held]) -> list[Held]:
        offer, own = posted.offer, sum([done.own for done, _ in posted.each])
        said = self._read(posted, raw)
        answers = said or [None] * len(posted.each)
        leases = [lease for answer in answers if answer is not None for lease in answer.leases]
        known = any(answers)  # does anybody know what came of the offer?
        unused = said is not None or len(posted.each) == 1  # no other commit can have used it
        for (done, commit), answer in zip(posted.each, answers, strict=True):
            try:
                found = self._answered(done, commit, answer, offer if unused and not known else None)
            except BaseException as error:  # noqa: BLE001 - the loop's door: one must not take others with it
                self.came_to_nothing(done.held, error)
            else:
                told.append(done.held)
                leases += found.leases if answer is None else ()
                known = known or unused
        if offer.tokens and not known and not unused:
            known = self._asked_for(offer, leases)
        if not known:
            self.slots.give_new(max(len(offer.tokens), own))
            return []
        fresh = self.admit(offer, leases)
        self.slots.give_new(max(own - len(offer.tokens), 0))
        return fresh

    def _asked_for(self, offer: Offer, leases: list[Lease]) -> bool:
        """Learn what is leased for an offer that went with several commits, and no answer came. False: nobody knows.

        Its tokens are claimed for once each of these is settled. No sooner, and with none of them: any of them may have
        brought leases under these tokens, or still bring some, and another one would lease under them a second time.
        """
        try:
            answer = self.insist(lambda: self.moves.claim(offer))
        except (ServerError, Hopeless) as error:
            log.warning("what came of %d offered slots is not known: %s", len(offer.tokens), error)
            return False
        self.tell_refused(answer)
        leases += answer.leases
        return True

    def _read(self, posted: Posted, raw: object) -> Sequence[Answer | None] | None:
        """What a reply says of each commit. None where none came, or can't be read: nobody knows what was done then."""
        if raw is None or isinstance(raw, Exception) or posted.line.lost(posted.at):
            return None
        try:
            return self.moves.answers_to([commit for _, commit in posted.each], posted.offer, raw)
        except Exception as error:  # noqa: BLE001 - whatever came there is no answer
            log.error("an answer can't be read: %r", error)
            posted.line.end()  # nor may the next ones be answers to what they seem to be
            return None

    def _answered(self, done: Done, commit: Commit, answer: Answer | None, offer: Offer | None) -> Answer:
        """A commit's answer, which is asked for if it is not there; without an offer if that went elsewhere. Raises
        ServerError, LogError."""
        if answer is None:
            answer, commit = self._asked(done, commit, offer or self.offer())
        reach("committed")
        self._settled(done, commit, answer)
        return answer

    def _asked(self, done: Done, commit: Commit, offer: Offer) -> tuple[Answer, Commit]:
        """The answer to a commit that is sent until one comes, and the commit that it was in the end."""
        try:
            return self.insist(lambda: self.moves.commit([(commit, offer)]))[0], commit
        except Hopeless as error:
            log.error("%s: Redis refuses its outcome: %s", done.held, error)
            assert done.held.attempt is not None
            failure = Result.stopped(done.held.attempt, f"Redis refuses its outcome: {error}")
        failed = self.settle(done._replace(result=failure))
        return self.insist(lambda: self.moves.commit([(failed, offer)]))[0], failed

    def _kept(self, told: Sequence[Held]) -> None:
        """Wait for what runs were promised beyond the commits just answered. Leases that came are held meanwhile."""
        more = [
            (held, durability)
            for held in told
            if held.attempt is not None and (durability := held.attempt.record.durability) != COMMIT
        ]
        if more:
            self.promises.report({durability for _, durability in more}, more[0][0], log)

    def came_to_nothing(self, held: Held, error: BaseException) -> None:
        """The loop's door: an outcome that could not be told. Its slot is another matter."""
        if isinstance(error, ServerError):
            log.warning("%s: its outcome is dropped, the process ends: %s", held, error.what)
        elif isinstance(error, LogError):
            self.unreadable(held, error)
        else:
            self.stumbled(held, error)

    def settle(self, done: Done) -> Commit:
        """The commit that tells an outcome. It is planned here, and may read or write the log for that."""
        attempt = done.held.attempt
        assert attempt is not None
        commit = self.insist(self.performer.settle, attempt, done.result)
        reach("settled")
        return commit

    def refill(self, own: int, room: int) -> Offer:
        """A new token for each slot that becomes free, and for idle ones, as far as there is room: for one, and for
        twice as many after each answer that left none free.

        A hungry front gets the slots instead. New, since a claim that comes a second time, late, may lease under those
        that it offered, and a commit does not look.
        """
        if self.draining.is_set() or self.hungry or not room:
            return self.offer()
        room = min(OFFER_MAX, room)
        own = min(own, room)
        idle = len(self.slots.take(min(room - own, self._spare))) if not self.resting else 0
        return self.offer(tuple([new_id() for _ in range(own + idle)]))

    def _settled(self, done: Done, commit: Commit, answer: Answer) -> None:
        held = done.held
        self.drop(held)
        self.performer.committed(commit, answer)
        if answer.refused:
            self.tell_refused(answer)
        failed = commit.outcome in ("failed", "unplanned")
        if answer.status not in ("ok", "already"):
            log.info("%s: its outcome came too late (%s)", held, answer.status)
        elif failed:
            log.warning("%s failed: %s", held, commit.reason.removeprefix(f"{held.lease.node}: "))
        self.tally.count(failed, time.monotonic() - held.began)

    def tell_refused(self, answer: Answer) -> None:
        """Jobs that are not ours: RQ's failed registry has them now, with the reason."""
        for text in answer.refused:
            log.warning("refused job %s", text)

    # ended from outside

    def overrule(self, held: Held, judge: Callable[[Attempt], Result]) -> bool:
        """Settle an attempt that still runs: a timeout, or an operator. Its slot stays busy until it ends."""
        attempt = held.attempt
        if attempt is None or not held.take_right():
            return False
        attempt.kill()
        self.committer(Done(held, judge(attempt), own=False))
        self.loop.cancel(held)
        return True

    def revoke(self, held: Held) -> None:
        """The lease is gone: what comes of the attempt is dropped."""
        if held.take_right():
            self.drop(held)
            self.loop.cancel(held)
            log.info("%s: its lease is gone; its result will be dropped", held)

    def unreadable(self, held: Held, error: LogError) -> None:
        """The log can't be read, or takes no entry, until somebody has mended it. The attempt counts as lost then."""
        log.error("%s: %s", held, error)
        held.take_right()
        self._release([held], "lost")

    def stumbled(self, held: Held, error: BaseException) -> None:
        """Our own code failed over an attempt: it counts as lost, so that this can't go on for ever."""
        log.error("everstep's own error over %s", held, exc_info=error)
        held.take_right()
        self._release([held], "lost")

"""The inbox: runs submitted by XADD, from redis-cli or any program, without our code.

    XADD everstep:{0}:inbox * graph counter thread demo input '{"count": 0}' [run R] [actor A] [if_busy interrupt]
                                                   [stream_mode custom,messages] [subgraphs true] [fairness_key K]

    inbox ──one reader at a time──► submit ──► XDEL           a crash between the two submits the same run id again
                                      ├─bad──► inbox:rejected (bounded), with the reason
                                      └─dies─► inbox:tries counts it: after three readers it is bad

    inbox ──its ids have come to their end──► inbox:replaced, read first; the next XADD makes a new stream

The run id is `inbox-<entry id>` where none is given. Every worker may read; one holds the reader's key, others wait.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, cast

from everstep_checkpoint.errors import EverstepError, InvalidInput, ServerError, ServerUnsuitable
from everstep_checkpoint.ids import new_id
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.signing import INBOX, takes_inbox

from ..moves.connection import connect, is_hopeless, patiently, translated
from ..moves.record import strategy
from .client import Client

READER_MS = 5000
BLOCK_MS = 1000
LOOK_S = 1.0
IDS_LOOK_S = 5.0
LAST_MS = 2**64 - 1  # of an id behind which Redis soon finds no further one, or none at all
TRIES_MAX = 3
TRIES_KEPT_S = 86_400
BATCH_MAX = 50
MESSAGE_MAX = 2**20
REJECTED_MAX = 1000
KEPT_BYTES = 4096
KEPT_FIELDS = 16
NO_EXPIRY = -1
NEEDED = ("graph", "thread", "input")

Message = Mapping[bytes, bytes]


def _silent(_: str) -> None:
    """Nobody listens."""


class InboxReader:
    """Reads the inbox of one partition. `source`: a URL, or what makes a client for blocks of so many seconds.
    `pause`: waits so many seconds while another one reads, and ends sooner if this one is to stop."""

    def __init__(
        self,
        source: str | Callable[[float], Any],
        keys: Keys,
        said: Callable[[str], None] = _silent,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self.keys = keys
        self.said = said
        self.pause = pause
        self.name = new_id()
        self._source = source
        self._client: Client | None = None
        self._counted = b""  # the message that this reader has begun
        self._ids_looked = float("-inf")

    def run(self, stopped: Callable[[], bool]) -> None:
        """Read until `stopped()`. Outages are waited for; raises ServerError for a refused login once stopped."""
        try:
            while not stopped():
                patiently(lambda: self.turn(stopped), stopped, self.said)
        except ServerError:
            if not stopped():
                raise
        finally:
            self._leave()

    def turn(self, stopped: Callable[[], bool] = lambda: False) -> int:
        """Wait at most a second for messages, and take those that are there. Returns how many. Raises ServerError."""
        client = self._opened()
        with translated(client.url):
            if not self._reads(client):
                self.pause(LOOK_S)
                return 0
            self._renew(client)
            places = {self.keys.inbox_replaced: "0", self.keys.inbox: "0"}
            found: Any = client.redis.xread(places, count=BATCH_MAX, block=BLOCK_MS)
            messages = [(stream.decode(), *message) for stream, rows in found or () for message in rows]
            for stream, entry_id, fields in messages:
                if _is_last(entry_id):
                    self._ids_looked = float("-inf")
                self._take(client, stream, entry_id, fields)
                if stopped() or not self._reads(client):
                    break
            return len(messages)

    def _opened(self) -> Client:
        if self._client is None:
            source = self._source
            made = connect(source, block_s=BLOCK_MS / 1000) if isinstance(source, str) else source(BLOCK_MS / 1000)
            self._client = Client(source if isinstance(source, str) else "", self.keys, made)
        return self._client

    # one reader

    def _reads(self, client: Client) -> bool:
        """Become the reader, or stay it. Two readers for a moment would do no harm: run ids tell what is known."""
        key = self.keys.inbox_reader
        if client.redis.set(key, self.name, nx=True, px=READER_MS):
            return True
        if client.redis.get(key) != self.name.encode():
            if client.redis.pttl(key) == NO_EXPIRY:
                client.redis.delete(key)  # a reader's always expires: this one is nobody's, and would stand for ever
            return False
        return bool(client.redis.pexpire(key, READER_MS))

    def _leave(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        try:
            with translated(client.url):
                if client.redis.get(self.keys.inbox_reader) == self.name.encode():
                    client.redis.delete(self.keys.inbox_reader)
        except ServerError:
            pass  # the key ends by itself
        if isinstance(self._source, str):
            client.redis.close()

    # the stream

    def _renew(self, client: Client) -> None:
        """Put a stream aside whose ids have come to their end, for Redis adds nothing to it any more: whoever may XADD
        can bring that about. What waits in it keeps its ids, and is read from there."""
        if time.monotonic() - self._ids_looked < IDS_LOOK_S:
            return
        self._ids_looked = time.monotonic()
        pipe = client.redis.pipeline(transaction=False)
        aside, there = pipe.exists(self.keys.inbox_replaced).exists(self.keys.inbox).execute()
        if aside:
            client.redis.transaction(self._remove, self.keys.inbox_replaced)
        if there and _is_last(client.redis.xinfo_stream(self.keys.inbox)["last-generated-id"]):
            client.redis.transaction(self._replace, self.keys.inbox_replaced)

    def _remove(self, pipe: Any) -> None:
        """What was put aside, once all in it is taken. Watched: another reader may put a stream there meanwhile."""
        left = pipe.xlen(self.keys.inbox_replaced)
        pipe.multi()
        if not left:
            pipe.delete(self.keys.inbox_replaced)

    def _replace(self, pipe: Any) -> None:
        aside = pipe.exists(self.keys.inbox_replaced)
        pipe.multi()
        if not aside:
            self.said(
                "the inbox has come to the end of its ids: somebody gave one by hand. A new stream takes its place"
            )
            pipe.rename(self.keys.inbox, self.keys.inbox_replaced)

    # one message

    def _take(self, client: Client, stream: str, entry_id: bytes, fields: Message) -> None:
        """Submit a message and take it out, or put it aside with the reason."""
        reason = ""
        try:
            with translated(client.url):
                self._count(client, entry_id)
            self._submit(client, entry_id, _read(fields))
        except ServerError as error:
            if not is_hopeless(error) and not isinstance(error, ServerUnsuitable):
                raise
            reason = str(error)  # it would be refused for ever, and all behind it wait
        except EverstepError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - the door: one message must not keep those behind it
            reason = f"everstep's own error over it: {error!r}"
        pipe = client.redis.pipeline(transaction=True)
        if reason:
            self._put_aside(pipe, entry_id, fields, reason)
        pipe.xdel(stream, entry_id)
        pipe.hdel(self.keys.inbox_tries, entry_id)
        pipe.execute()

    def _count(self, client: Client, entry_id: bytes) -> None:
        """One more reader begins with a message. Raises InvalidInput for one that several began and none has ended:
        it may have killed them. The same reader again, after an outage, is not one more."""
        if entry_id == self._counted:
            return
        if client.redis.type(self.keys.inbox_tries) not in (b"hash", b"none"):
            client.redis.delete(self.keys.inbox_tries)  # nobody's, and it would stop the inbox
        pipe = client.redis.pipeline(transaction=True)
        pipe.hincrby(self.keys.inbox_tries, entry_id, 1)
        pipe.expire(self.keys.inbox_tries, TRIES_KEPT_S)
        tries = int(pipe.execute()[0])
        self._counted = entry_id
        if tries > TRIES_MAX:
            raise InvalidInput(
                f"{TRIES_MAX} processes have begun with the message, and none came to its end",
                fix="look why they ended, or what took them so long; send it with a client to see its error",
            )

    def _submit(self, client: Client, entry_id: bytes, said: Mapping[str, str]) -> None:
        if not takes_inbox(client.log_store.signer):
            raise InvalidInput(
                "entries are signed here, and nobody can sign a message of the inbox",
                fix=f"submit with a client that has the key, or set {INBOX}=allow for the workers",
            )
        with translated(client.url):
            client.submit(
                said["graph"],
                _json(said["input"]),
                thread_id=said["thread"],
                run_id=said.get("run") or f"inbox-{entry_id.decode()}",
                actor=said.get("actor", ""),
                multitask_strategy=strategy(said.get("if_busy", "enqueue")),
                stream_mode=[each.strip() for each in said.get("stream_mode", "").split(",") if each.strip()],
                subgraphs=_flag(said, "subgraphs"),
                durability=said.get("durability"),
                fairness_key=said.get("fairness_key"),
            )

    def _put_aside(self, pipe: Any, entry_id: bytes, fields: Message, reason: str) -> None:
        self.said(f"refused the inbox message {entry_id.decode()}: {reason}")
        kept = {name[:KEPT_BYTES]: value[:KEPT_BYTES] for name, value in list(fields.items())[:KEPT_FIELDS]}
        kept |= {b"reason": reason.encode("utf-8", "replace")[:KEPT_BYTES], b"message": entry_id}
        pipe.xadd(self.keys.inbox_rejected, kept, maxlen=REJECTED_MAX, approximate=True)


def _is_last(entry_id: bytes) -> bool:
    """Has an id, or that of a stream's last entry, the highest time there is?"""
    return int(entry_id.partition(b"-")[0]) >= LAST_MS


def _read(fields: Message) -> dict[str, str]:
    """The fields of a message as text. Raises InvalidInput."""
    size = sum(len(name) + len(value) for name, value in fields.items())
    if size > MESSAGE_MAX:
        raise InvalidInput(f"the message has {size:,} bytes, the cap is {MESSAGE_MAX:,}", fix="submit it with a client")
    said: dict[str, str] = {}
    for name, value in fields.items():
        try:
            said[name.decode()] = value.decode()
        except UnicodeDecodeError:
            raise InvalidInput(f"the field {name!r} is not UTF-8", fix="write all fields as UTF-8 text") from None
    if lacking := [name for name in NEEDED if not said.get(name)]:
        raise InvalidInput(f"the message lacks {', '.join(lacking)}", fix="XADD ... * graph G thread T input JSON")
    return said


def _flag(said: Mapping[str, str], name: str) -> bool:
    """A field that says yes or no. Raises InvalidInput for anything else."""
    word = said.get(name, "false").strip().lower()
    if word not in ("true", "false", "1", "0"):
        raise InvalidInput(f"{name} is {word!r}", fix="say true or false, or leave it out")
    return word in ("true", "1")


def _json(text: str) -> object:
    """The input. Raises InvalidInput for what is no JSON, and for what only Python takes for JSON."""
    try:
        return cast("object", json.loads(text, parse_constant=_no_constant))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the input is not JSON: {error}", fix="""give an object, such as {"count": 0}""") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")

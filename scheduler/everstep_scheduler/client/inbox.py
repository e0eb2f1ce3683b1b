"""The inbox: runs submitted by XADD, from redis-cli or any program, without our code.

    XADD everstep:{0}:inbox * graph counter thread demo input '{"count": 0}' [run R] [actor A] [if_busy interrupt]
                                                                     [stream_mode custom,messages] [subgraphs true]

    inbox ──one reader at a time──► submit ──► XDEL           a crash between the two submits the same run id again
                                      └─bad──► inbox:rejected (bounded), with the reason

The run id is `inbox-<entry id>` where none is given. Every worker may read; one holds the reader's key, others wait.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, cast

from everstep_checkpoint.errors import EverstepError, InvalidInput, ServerError, ServerUnsuitable
from everstep_checkpoint.keys import Keys
from everstep_checkpoint.log import new_id
from everstep_checkpoint.signing import INBOX, takes_inbox

from ..moves.connection import connect, is_hopeless, patiently, translated
from ..moves.record import strategy
from .client import Client

READER_MS = 5000
BLOCK_MS = 1000
LOOK_S = 1.0
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
            found: Any = client.redis.xread({self.keys.inbox: "0"}, count=BATCH_MAX, block=BLOCK_MS)
            messages = [message for _, rows in found or () for message in rows]
            for entry_id, fields in messages:
                self._take(client, entry_id, fields)
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

    # one message

    def _take(self, client: Client, entry_id: bytes, fields: Message) -> None:
        """Submit a message and take it out, or put it aside with the reason."""
        try:
            self._submit(client, entry_id, _read(fields))
        except ServerError as error:
            if not is_hopeless(error) and not isinstance(error, ServerUnsuitable):
                raise
            self._reject(client, entry_id, fields, str(error))  # it would be refused for ever, and all behind it wait
            return
        except EverstepError as error:
            self._reject(client, entry_id, fields, str(error))
            return
        except Exception as error:  # noqa: BLE001 - the door: one message must not keep those behind it
            self._reject(client, entry_id, fields, f"everstep's own error over it: {error!r}")
            return
        client.redis.xdel(self.keys.inbox, entry_id)

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
            )

    def _reject(self, client: Client, entry_id: bytes, fields: Message, reason: str) -> None:
        self.said(f"refused the inbox message {entry_id.decode()}: {reason}")
        kept = {name[:KEPT_BYTES]: value[:KEPT_BYTES] for name, value in list(fields.items())[:KEPT_FIELDS]}
        kept |= {b"reason": reason.encode("utf-8", "replace")[:KEPT_BYTES], b"message": entry_id}
        pipe = client.redis.pipeline(transaction=True)
        pipe.xadd(self.keys.inbox_rejected, kept, maxlen=REJECTED_MAX, approximate=True)
        pipe.xdel(self.keys.inbox, entry_id)
        pipe.execute()


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

"""An attempt's voice: what a node says while it runs, for those who stream in the modes `custom` and `messages`.

    runtime.stream_writer(x), get_stream_writer()(x)  ──► custom
    a chat model's tokens (langchain-core's callbacks) ──► messages: (chunk, metadata)
    messages that the node returns                     ──► messages, unless they were told or came with its input

Where nobody listens there is no voice, and none of this is loaded. What is told is encoded at once: what the node
changes later changes nothing of it, and what a worker could not tell is refused inline too.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast
from uuid import uuid4

from pydantic import BaseModel

from everstep_checkpoint.codec import Codec
from everstep_checkpoint.errors import TooLarge

from ..graph.runtime import Command
from ..moves.contract import Lease
from ..moves.live import LIVE_MODES, SAID_MAX, LiveWriter, Said
from ..moves.record import RunRecord

if TYPE_CHECKING:
    from .chat import ChatHandler
    from .perform import Attempt


class Listener(NamedTuple):
    """Who listens to an attempt: in which modes, and where what is said goes. `hear` must not wait."""

    modes: Sequence[str]
    hear: Callable[[Said], None]


class Listening(Protocol):
    """Says who listens to an attempt; None: nobody."""

    def __call__(self, lease: Lease, record: RunRecord) -> Listener | None: ...


class Voice:
    """What one attempt says. Safe to use from several threads; `hush` ends it.

    `metadata` goes with each message; `config` is what chat models run with. `told`: how many things were told.
    """

    def __init__(
        self, lease: Lease, codec: Codec, listener: Listener, metadata: Mapping[str, Any], config: Mapping[str, Any]
    ) -> None:
        self.told = 0
        self.modes = listener.modes
        self.metadata = metadata
        self.chat = _chat_handler(self) if "messages" in listener.modes else None
        self._config = {**config, "callbacks": self.chat.callbacks} if self.chat is not None else config
        self._lease = lease
        self._codec = codec
        self._hear = listener.hear
        self._seen: set[Any] = set()
        self._lock = threading.Lock()
        self._hushed = False

    def hush(self) -> None:
        """Nothing more is told: the attempt is settled, though its thread may still run."""
        with self._lock:
            self._hushed = True

    def speaking(self) -> AbstractContextManager[None]:
        """Inside runs the node, and chat models are listened to."""
        return self.chat.heard(self._config) if self.chat is not None else nullcontext()

    def write(self, said: Any) -> None:
        """Tell something in mode `custom`. Raises UnknownType, TooLarge."""
        if "custom" in self.modes:
            self._say("custom", said)

    def message(self, message: Any, metadata: Mapping[str, Any], *, once: bool = False) -> None:
        """Tell a message, or a chunk of one. With `once` not again if it was told; one without an id gets one."""
        known = _id(message)
        if once and known is not None and known in self._seen:
            return
        if known is None and not isinstance(message, dict):
            message.id = known = str(uuid4())
        if known is not None:
            self._seen.add(known)
        self._say("messages", (message, dict(metadata)))

    def given(self, value: Any) -> None:
        """The node's input: messages in it are no news."""
        if "messages" in self.modes:
            self._seen.update(key for each in _inside(value) if (key := _id(each)) is not None)

    def returned(self, value: Any) -> None:
        """What the node returned: messages in it that were not told yet are told."""
        if "messages" not in self.modes:
            return
        for each in _updates(value):
            for message in _inside(each):
                self.message(message, self.metadata, once=True)

    def _say(self, mode: str, chunk: Any) -> None:
        lease = self._lease
        data = self._codec.encode(chunk, f"what {lease.node!r} told in mode {mode!r}")
        if len(data) > SAID_MAX:
            raise TooLarge(
                f"{lease.node!r} told {len(data):,} bytes at once, the cap is {SAID_MAX:,}",
                thread=lease.thread,
                node=lease.node,
                fix="tell it in pieces, or put it into the state",
            )
        with self._lock:
            if not self._hushed:
                self.told += 1
                at = (mode, lease.n, lease.task, self.metadata["task_id"], lease.node, lease.attempt, lease.token)
                self._hear(Said(*at, self.told, data))


def returned_by(attempt: Attempt, value: Any) -> None:
    """Tell the messages that an attempt's node returned. Of a graph that is listened to itself they were told there;
    of another one those are news that did not come with its input."""
    voice, node = attempt.voice, attempt.node
    calls = node is not None and node.calls
    if voice is None or (calls and attempt.record.subgraphs):
        return
    if calls:
        attempt.args()
    voice.returned(value)


def through(writer: LiveWriter) -> Listening:
    """Those who listen through Redis: in the modes that the run's record names."""

    def listening(lease: Lease, record: RunRecord) -> Listener | None:
        modes = [mode for mode in record.live if mode in LIVE_MODES]
        return Listener(modes, partial(writer.tell, lease.thread, lease.run)) if modes else None

    return listening


def _chat_handler(voice: Voice) -> ChatHandler | None:
    """Listens to chat models; None where langchain-core is not installed."""
    try:
        handler = import_module("everstep_scheduler.steps.chat").ChatHandler
    except ImportError:
        return None
    return cast("ChatHandler", handler(voice))


def _updates(value: Any) -> Sequence[Any]:
    """What a node returned, each Command's update for itself."""
    given = list(cast("Sequence[Any]", value)) if isinstance(value, (list, tuple)) else [value]
    if not any(isinstance(each, Command) for each in given):
        return [value]
    return [each.update if isinstance(each, Command) else each for each in given]  # pyright: ignore


def _inside(value: Any) -> Iterator[Any]:
    """The messages in a state or an update: the value itself, its items, its fields, or their items."""
    if _is_object(value):
        yield value
    elif isinstance(value, (list, tuple)):
        yield from (each for each in cast("Sequence[Any]", value) if _is_object(each))
    else:
        for each in _field_values(value):
            if _is_message(each):
                yield each
            elif isinstance(each, (list, tuple)):
                yield from (item for item in cast("Sequence[Any]", each) if _is_message(item))


def _field_values(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return list(cast("Mapping[str, Any]", value).values())
    if isinstance(value, BaseModel):
        return [getattr(value, name) for name in type(value).model_fields]
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, each.name) for each in fields(value)]
    return ()


def _is_object(value: Any) -> bool:
    """Is it one of langchain-core's messages? Who made one has imported its module."""
    module: Any = sys.modules.get("langchain_core.messages")
    return module is not None and isinstance(value, module.BaseMessage)


def _is_message(value: Any) -> bool:
    """A message object, or the plain form: a dict with role and content."""
    if isinstance(value, dict):
        plain = cast("dict[str, Any]", value)
        return isinstance(plain.get("role"), str) and "content" in plain
    return _is_object(value)


def _id(message: Any) -> Any:
    return cast("dict[str, Any]", message).get("id") if isinstance(message, dict) else message.id

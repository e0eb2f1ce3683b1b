"""Where a command works: a Redis, a namespace, a partition. Connections are made when they are first used."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Generator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everstep_checkpoint.keys import Keys
    from everstep_checkpoint.redislog import RedisLog
    from everstep_scheduler.client.client import Client

DEFAULT_URL = "redis://127.0.0.1:6379/0"
SCANS_MAX = 100


class Site:
    """The global options of a command line. `given`: did the user say which Redis, by option or environment?"""

    def __init__(self, url: str, namespace: str = "everstep", partition: str = "0", *, given: bool = True) -> None:
        self.url = url
        self.namespace = namespace
        self.partition = partition
        self.given = given

    @cached_property
    def keys(self) -> Keys:
        """Raises InputError for a namespace or partition that can't be part of a key."""
        from everstep_checkpoint.errors import InputError
        from everstep_checkpoint.keys import Keys, rq_prefix

        try:
            return Keys(self.namespace, self.partition, rq_prefix(self.partition))
        except ValueError as error:
            raise InputError(str(error), fix="choose a simple name for --namespace and --partition") from None

    @cached_property
    def redis(self) -> Any:
        """A plain connection, bytes in and out. Raises InputError for a URL that is none.

        Any: redis-py types its answers for decoding and asynchronous clients too.
        """
        from everstep_scheduler.moves.connection import connect

        return connect(self.url, block_s=5.0)

    @cached_property
    def log(self) -> RedisLog:
        from everstep_checkpoint.redislog import RedisLog

        return RedisLog(self.redis, self.keys)

    @cached_property
    def client(self) -> Client:
        from everstep_scheduler.client.client import Client

        return Client(self.shown, self.keys, self.redis)  # it connects by `redis`, and names the URL in errors

    @property
    def shown(self) -> str:
        """The URL for people: never with its password, wherever in it that stands."""
        return re.sub(r"//([^:@/]*):[^/]*@", r"//\1:***@", self.url.partition("?")[0])

    @property
    def place(self) -> str:
        """The namespace and the partition, for people."""
        return f"namespace {self.namespace!r}, partition {self.partition!r}"

    def again(self, line: str) -> str:
        """A line with our own commands, to be pasted into this shell: with the options that its environment lacks."""
        said: list[str] = []
        if self.url != (os.environ.get("EVERSTEP_URL") or os.environ.get("REDIS_URL") or DEFAULT_URL):
            said += [f"--url {'URL' if self.secret else shlex.quote(self.url)}"]
        if self.namespace != os.environ.get("EVERSTEP_NAMESPACE", "everstep"):
            said += [f"--namespace {self.namespace}"]
        if self.partition != os.environ.get("EVERSTEP_PARTITION", "0"):
            said += [f"--partition {self.partition}"]
        # behind the word: there every option is understood, too, and the line reads as the docs have it
        return re.sub(r"\beverstep ([a-z]+)\b", lambda found: " ".join([found[0], *said]), line) if said else line

    @property
    def secret(self) -> bool:
        """Does the URL hold what nobody may see?"""
        return self.shown != self.url.partition("?")[0] or "password=" in self.url

    def rq(self, *words: str) -> str:
        """A line of RQ's own command, to be pasted into a shell; a URL with a password is left to the environment."""
        prefix = "" if self.keys.rq == "rq" else f"RQ_KEY_PREFIX={shlex.quote(self.keys.rq)} "
        return f"{prefix}rq {shlex.join(words)} --url " + ('"$EVERSTEP_URL"' if self.secret else shlex.quote(self.url))

    def unused(self) -> bool:
        """Has nothing ever run here? No sentinel, no graph, no message, and no log."""
        keys = self.keys
        known = self.redis.exists(keys.alive, keys.graphs, keys.inbox)
        return not known and next(self.log.threads(), None) is None

    def neighbours(self) -> list[str]:
        """Other namespaces of everstep that a bounded look finds on this server, with their partitions."""
        found, cursor = set[str](), 0
        for _ in range(SCANS_MAX):
            cursor, names = self.redis.scan(cursor, match="*:{*}:alive", count=1000)
            found |= {name.decode("utf-8", "replace").removesuffix(":alive") for name in names}
            if not cursor:
                break
        return sorted(f"{stem.partition(':')[0]} (partition {stem.partition(':')[2].strip('{}')})" for stem in found)

    @contextmanager
    def open(self) -> Generator[Site]:
        """For as long as a command talks to Redis: its errors become ours, which say what to do."""
        from everstep_scheduler.moves.connection import translated

        with translated(self.shown):
            yield self

    def say(self, text: str) -> None:
        """A message for people, on stderr."""
        import click

        click.echo(text, err=True)

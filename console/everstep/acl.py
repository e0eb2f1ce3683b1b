"""Redis users with the least rights: who works, who submits, who reads, who only drops messages into the inbox. Pure.

    rules("worker", keys) ──► ["reset", "on", "#<hash>", "resetchannels", "~everstep:{0}:*", ..., "-@all", "+get", ...]

Commands are named one by one, so that a new version of Redis gives nobody more. A script's commands need the same
rights as those that are sent, so who may run our scripts may also write to our keys by hand; other keys, and the
server, it can't reach.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from everstep_checkpoint.keys import Keys

Role = Literal["worker", "producer", "reader", "inbox"]
ROLES: tuple[Role, ...] = ("worker", "producer", "reader", "inbox")
PLACEHOLDER = "#SHA256-OF-ITS-PASSWORD"  # no hash: Redis refuses the line until one stands there

_CONNECT = ("auth", "hello", "ping", "select", "client|setname", "client|info", "time")
_READ = (
    "exists", "get", "getrange", "hexists", "hget", "hgetall", "hkeys", "hlen", "hmget", "hrandfield", "hscan",
    "hstrlen", "info", "lindex", "llen", "lpos", "lrange", "mget", "pttl", "scan", "scard", "sismember", "smembers",
    "srandmember", "ttl", "type", "xinfo|stream", "xlen", "xrange", "xread", "xrevrange", "zcard", "zcount", "zrange",
    "zrangebyscore", "zrevrange", "zrevrangebyscore", "zmscore", "zscan", "zscore",
)  # fmt: skip
_WRITE = (
    "del", "discard", "eval", "evalsha", "exec", "expire", "hdel", "hincrby", "hset", "lpop", "lpush", "lrem",
    "lset", "multi", "persist", "pexpire", "rename", "rpush", "sadd", "script|load", "set", "srem", "unlink",
    "unwatch", "wait", "watch", "xadd", "xdel", "xtrim", "zadd", "zpopmin", "zrem", "zremrangebyscore",
)  # fmt: skip
_WORK = ("blpop", "subscribe", "unsubscribe")
# What RQ's own worker sends beside these, with our job class.
_STOCK = (
    "blmove", "hincrbyfloat", "lmove", "publish",
)  # fmt: skip
_COMMANDS: dict[Role, tuple[str, ...]] = {
    "worker": (*_CONNECT, *_READ, *_WRITE, *_WORK),
    "producer": (*_CONNECT, *_READ, *_WRITE),
    "reader": (*_CONNECT, *_READ),
    "inbox": (*_CONNECT, "xadd"),
}


def hashed(password: str) -> str:
    """A password as ACL rules take it, so that it never stands in a command line, a log or a file."""
    return "#" + hashlib.sha256(password.encode()).hexdigest()


def commands(role: Role, *, stock: bool = False) -> list[str]:
    """The commands that a role may send."""
    return sorted({*_COMMANDS[role], *(_STOCK if stock else ())})


def rules(role: Role, keys: Keys, *, password: str = "", stock: bool = False) -> list[str]:
    """The rules of one user, for `ACL SETUSER <user>` or for the line of a file. `password` empty: a placeholder.

    `stock`: with what RQ's own worker sends, for `rq worker -j everstep.RQJob`.
    """
    allowed = [f"+{command}" for command in commands(role, stock=stock)]
    return ["reset", "on", hashed(password) if password else PLACEHOLDER, *_places(role, keys), "-@all", *allowed]


def _places(role: Role, keys: Keys) -> Sequence[str]:
    """Which keys and channels."""
    match role:
        case "inbox":
            return [f"%W~{keys.inbox}"]
        case "reader":
            return [f"%R~{keys.stem}*", f"%R~{keys.rq}:*"]
        case "producer":
            return [f"~{keys.stem}*", f"~{keys.rq}:*"]
        case "worker":
            return [f"~{keys.stem}*", f"~{keys.rq}:*", f"&{keys.rq_commands('*')}"]

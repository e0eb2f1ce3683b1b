"""`everstep doctor`: is all well? Each finding says what is, and if it is not well, what to do.

    examine(site) ──► Finding(mark, about, said, fix), ...       mark: ok | ! (know this) | x (act on this)

Reads only, bounded, and works for a user who may not run CONFIG. What open tasks' places are is looked at in `places`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

from redis.exceptions import NoPermissionError, ResponseError

from everstep_checkpoint.signing import UNSIGNED, of_environment

from . import fleet, show
from .finding import ACT, KNOW, OK, Check, Finding, Look
from .promised import promised
from .site import Site

OLDEST = (7, 0)
# The first version of a series without a known remote hole that our use of scripts and blocking reads would touch.
FLOORS: dict[str, dict[tuple[int, ...], int]] = {
    "redis": {(7, 2): 11, (7, 4): 11, (8, 0): 4, (8, 2): 9, (8, 4): 6, (8, 6): 6, (8, 8): 2, (8, 10): 1},
    "valkey": {(7, 2): 11, (8, 0): 6, (8, 1): 4},
}
PINGS = 20
SLOW_MS = 5.0
FULL = 0.9
LESS = "raise maxmemory, or delete old threads: everstep threads --status done; everstep delete THREAD"


def examine(site: Site) -> list[Finding]:
    """All findings, in an order that puts causes before effects. Raises ServerUnavailable, InvalidInput for a URL that
    is none."""
    _ = site.redis  # before any check, each of which would take a URL that is none for broken keys
    look = Look(site, {})
    found: list[Finding] = []
    for about, check in CHECKS:
        try:
            found += check(look)
        except NoPermissionError as error:
            found.append(
                Finding(KNOW, about, f"not known: {error}", "give this Redis user the command, or ask as another one")
            )
        except (ResponseError, ValueError) as error:
            said = f"a key of ours, or of RQ's, is not what was written there: {error}"
            found.append(Finding(ACT, about, said, "see who writes to it; everstep recover makes indexes anew"))
    return [replace(each, fix=site.again(each.fix)) for each in found]


def _told(look: Look) -> Iterator[Finding]:
    """What Redis says of itself; all that hangs on it is left out where this user may not ask."""
    look.info = look.redis.info("all")
    for check in (server, durability, promised, memory, clients):
        yield from check(look)


# --- the server ---


def server(look: Look) -> Iterator[Finding]:
    kind = str(look.info.get("server_name") or "redis")
    text = str(look.info.get(f"{kind}_version") or look.info.get("redis_version"))
    version = tuple(int(part) for part in text.split(".") if part.isdigit())
    said = f"{kind} {text} at {look.site.shown}"
    least = FLOORS.get(kind, {}).get(version[:2])
    if version < OLDEST:
        yield Finding(ACT, "server", f"{said}: too old", "7.0 is the oldest that will do")
    elif least is not None and version[2] < least:
        yield Finding(
            KNOW, "server", f"{said}: has known security holes", f"upgrade to {version[0]}.{version[1]}.{least}"
        )
    elif kind == "redis" and version[:2] == (7, 0):
        fix = "7.0 is only mended by distributions (Debian 12: 7.0.15-1~deb12u10 or newer); a newer series is safer"
        yield Finding(KNOW, "server", said, fix)
    else:
        yield Finding(OK, "server", said)
    if look.info.get("role") not in (None, "master"):
        yield Finding(ACT, "server", "it is a read-only replica", "use the URL of the primary")
    if look.info.get("cluster_enabled"):
        yield Finding(
            KNOW,
            "server",
            "it is a Cluster node",
            "RQ can't follow slots: give each partition the URL of the node that owns it",
        )


FSYNC = {
    "always": (OK, "appendfsync always: what was shown is on disk; a power loss takes nothing back", ""),
    "everysec": (OK, "appendfsync everysec: a crash of Redis loses nothing; a power loss takes back about the last "
                 "second, even steps already shown, and runs go on from an earlier whole step", ""),
    "no": (KNOW, "appendfsync no: a power loss takes back what the system had not written, often 30 s",
           "CONFIG SET appendfsync everysec"),
}  # fmt: skip


UNKNOWN_FSYNC = (
    KNOW,
    "append-only file is on; its fsync policy is not known: this user may not run CONFIG GET",
    "ACL SETUSER <user> +config|get, or look into redis.conf",
)


def _fsync_policy(look: Look) -> str:
    """Empty where it can't be asked for: no rights, or a hosted Redis without CONFIG."""
    try:
        return str(look.redis.config_get("appendfsync").get("appendfsync", ""))
    except ResponseError:
        return ""


def _for_good(look: Look, words: str) -> str:
    """A setting, and that it is kept over a restart."""
    return f"{look.cli(*words.split(' '))}; then {look.cli('CONFIG', 'REWRITE')}"


def durability(look: Look) -> Iterator[Finding]:
    if not look.info.get("aof_enabled"):
        fix = _for_good(look, "CONFIG SET appendonly yes")
        yield Finding(ACT, "fsync", "appendonly is off: a restart of Redis loses every run since its last dump", fix)
        return
    if look.info.get("aof_last_write_status", "ok") != "ok":
        yield Finding(
            ACT, "fsync", "the last write to the append-only file failed", "look at Redis' disk: df -h, and its log"
        )
    mark, said, fix = FSYNC.get(_fsync_policy(look), UNKNOWN_FSYNC)
    yield Finding(mark, "fsync", said, _for_good(look, fix) if fix.startswith("CONFIG") else fix)
    if look.info.get("connected_slaves"):
        said = "replicas are asynchronous: a failover takes back what they had not received yet"
        yield Finding(OK, "failover", said)


def memory(look: Look) -> Iterator[Finding]:
    used, limit = int(look.info.get("used_memory", 0)), int(look.info.get("maxmemory", 0))
    policy = str(look.info.get("maxmemory_policy", ""))
    said = (
        f"{show.size(used)} used"
        + (f" of {show.size(limit)}" if limit else ", no limit set")
        + f", {policy or 'policy unknown'}"
    )
    if policy != "noeviction" and policy:
        fix = _for_good(look, "CONFIG SET maxmemory-policy noeviction")
        yield Finding(ACT, "memory", f"{said}: Redis may throw logs away", fix)
    elif limit and used >= limit:
        look.full = True
        yield Finding(ACT, "memory", f"{said}: full, runs stand still and lose nothing", LESS)
    elif limit and used > limit * FULL:
        yield Finding(KNOW, "memory", f"{said}: nearly full", LESS)
    else:
        yield Finding(OK, "memory", said)


def speed(look: Look) -> Iterator[Finding]:
    times: list[float] = []
    for _ in range(PINGS):
        began = time.perf_counter()
        look.redis.ping()
        times.append((time.perf_counter() - began) * 1000)
    median = statistics.median(times)
    said = f"{median:.2f} ms a round trip (median of {PINGS}); a step costs about one"
    yield Finding(
        OK if median < SLOW_MS else KNOW, "speed", said, "" if median < SLOW_MS else "bring the workers nearer to Redis"
    )


def clients(look: Look) -> Iterator[Finding]:
    now, most = int(look.info.get("connected_clients", 0)), int(look.info.get("maxclients", 0))
    tight = bool(most) and now > most * FULL
    said = f"{now} connections" + (f" of {most:,}" if most else "")
    yield Finding(KNOW if tight else OK, "clients", said, "raise maxclients, or run fewer processes" if tight else "")


def signing(look: Look) -> Iterator[Finding]:
    signer = of_environment()
    if signer is None:
        yield Finding(OK, "signing", "off: who may write to Redis can forge entries; docs/security.md says how to sign")
        return
    first, *others = signer.ids
    also = f", and verifies {', '.join(others)}" if others else ""
    said = f"entries are signed: this process signs with the key {first!r}{also}"
    if signer.strict:
        yield Finding(OK, "signing", said)
    else:
        yield Finding(KNOW, "signing", f"{said}; unsigned ones are taken", f"unset {UNSIGNED} once all processes sign")


CHECKS: tuple[tuple[str, Check], ...] = (
    ("server", _told), ("speed", speed), ("signing", signing),
    ("indexes", fleet.sentinels), ("workers", fleet.workers), ("queues", fleet.queues), ("parked", fleet.parked),
    ("leases", fleet.leases), ("failed", fleet.failures), ("inbox", fleet.inbox), ("logs", fleet.logs),
    ("deleting", fleet.dying),
    ("places", fleet.places),
)  # fmt: skip

"""Signing: an HMAC in the entries of a log, so that who may write to Redis, and has no key, can't forge or move them.

    keys from the environment ──► Keyring ──seal──► field `sig`: `<key id> [<n> <behind>] <mac>`
                                          ──check─► nothing, or Forged: unsigned, wrong, of another place, unknown key

The MAC covers the thread, the checkpoint that the entry stands behind, its kind, and all fields that its writer gave.
Scripts write a few plain facts themselves and have no key: of those kinds, and with those fields only, unsigned ones
are taken. What this protects against, and what it can't: `docs/security.md`.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from . import entries as e
from .codec import pack
from .errors import Forged, SigningKeyError

KEY, KEY_FILE = "EVERSTEP_SIGNING_KEY", "EVERSTEP_SIGNING_KEY_FILE"
UNSIGNED, INBOX = "EVERSTEP_SIGNING_UNSIGNED", "EVERSTEP_SIGNING_INBOX"
FIELD = "sig"
KEY_BYTES_MIN = 32
FILE_MAX = 64 * 1024
BEHIND = 22  # characters of a digest, or of a birth, that a signature names: 128 bits
ANYWHERE = "-"  # of a run that begins a thread: its script draws the birth
RUNS = frozenset({"run_started", "run_queued"})
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,32}")
_SIG = re.compile(r"([A-Za-z0-9._-]{1,32})(?: (\d{1,20}) ([A-Za-z0-9_-]{1,22}))? ([A-Za-z0-9_-]{43})", re.ASCII)
# What a script adds to the fields that its caller gave.
_ADDED = frozenset({"v", "kind", "at", FIELD})
_ADDED_TO = {
    **dict.fromkeys(RUNS, _ADDED | {"birth", "step", "of"}),
    "task_moved": _ADDED | {"timeout_s"},
}
# The facts that scripts write by themselves, and all that they may say: no user data, and nothing that decides what
# runs but what is checked against signed entries.
_BASE = frozenset({"v", "kind", "at", "run"})
_PLAIN = {
    "run_started": _BASE | {"of", "step"},
    "run_rested": _BASE | {"status", "actor", "error"},
    "run_cancel_asked": _BASE | {"actor"},
    "task_lost": _BASE | {"task", "attempt", "token", "by", "node", "error"},
    "task_parked": _BASE | {"task", "node", "by", "error"},
    "task_failed": _BASE | {"task", "attempt", "node", "error"},  # of type Poison
    "task_added": _BASE | {"task", "node", "queue", "timeout_s", "parts"},  # by a Command: its run's fact says it, too
}


class Place(NamedTuple):
    """Where an entry was signed for: behind checkpoint n, whose digest begins with `behind`; n 0: the birth."""

    n: int
    behind: str


class Signer(Protocol):
    """What a log and the moves ask for signatures. `strict`: what has to be signed and is not is refused."""

    @property
    def strict(self) -> bool: ...
    def seal(self, thread: str, n: int, digest: str, fields: e.Fields) -> e.Fields:
        """The fields with their signature, for a place behind checkpoint n of that digest (0 and the birth)."""
        ...

    def check(self, thread: str, entry: e.Entry) -> None:
        """Raises Forged for an entry that nobody with the key wrote for this thread and this number."""
        ...

    def stamp(self, about: str, value: bytes) -> bytes:
        """A value that lies outside of logs, with a signature before it."""
        ...

    def stamped(self, about: str, stored: bytes) -> bytes | None:
        """The value out of its stamp; None if it was not stamped about this."""
        ...


class Keyring(Signer):
    """Keys by their ids. The first one signs, all of them verify. Never shows a key."""

    def __init__(self, keys: Mapping[str, bytes], *, strict: bool = True) -> None:
        if not keys:
            raise SigningKeyError("there is no key to sign with", fix=f"give {KEY_FILE} lines of id:base64key")
        for key_id, key in keys.items():
            if not _KEY_ID.fullmatch(key_id):
                raise SigningKeyError("the id of a signing key is none", fix="1 to 32 of A-Z a-z 0-9 . _ -")
            if len(key) < KEY_BYTES_MIN:
                raise SigningKeyError(
                    f"the signing key {key_id!r} has {len(key)} bytes, it needs {KEY_BYTES_MIN}",
                    fix="make one with `openssl rand -base64 32`",
                )
        self._keyed = {key_id: hmac.new(key, None, "sha256") for key_id, key in keys.items()}
        self._first = next(iter(keys))
        self._strict = strict

    @property
    def strict(self) -> bool:
        return self._strict

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of its keys; the first one signs."""
        return tuple(self._keyed)

    def __repr__(self) -> str:
        return f"Keyring({', '.join(self._keyed)})"

    def __reduce__(self) -> str:
        raise TypeError("a Keyring is not to be stored or sent")

    def seal(self, thread: str, n: int, digest: str, fields: e.Fields) -> e.Fields:
        kind = str(fields["kind"]) if "kind" in fields else "run_started"
        behind = "" if kind == e.CHECKPOINT else digest[:BEHIND] or ANYWHERE
        number = n + 1 if kind == e.CHECKPOINT else n
        said = e.stored(fields).items()
        mac = self._mac(self._first, thread, number, behind, kind, said)
        place = f"{n} {behind} " if behind else ""
        return {**fields, FIELD: f"{self._first} {place}{mac}"}

    def check(self, thread: str, entry: e.Entry) -> None:
        if FIELD not in entry.raw:
            if self._strict and not _is_plain(entry):
                raise forged(thread, entry, "is not signed", _WHO)
            return
        found = _SIG.fullmatch(entry.text(FIELD))
        if found is None:
            raise forged(thread, entry, "has a signature that is none", _WHO)
        key_id, n, behind, mac = found.groups()
        if key_id not in self._keyed:
            why = f"is signed with the key {key_id!r}, which is not among the keys here ({', '.join(self._keyed)})"
            raise forged(thread, entry, why, f"give this process the key {key_id!r}, too, or delete the thread")
        is_checkpoint = behind is None
        number = entry.n if is_checkpoint else int(n)
        made = self._mac(key_id, thread, number, behind or "", entry.kind, entry.raw.items())
        if is_checkpoint != entry.is_checkpoint or not hmac.compare_digest(made, mac):
            raise forged(thread, entry, f"was not signed as it stands here with the key {key_id!r}", _WHO)
        is_run = entry.kind in RUNS
        if not is_checkpoint and not (number == entry.n or (is_run and number < entry.n)):
            raise forged(thread, entry, f"was signed for a place behind checkpoint {number}", _WHO)
        if behind == ANYWHERE and not is_run:
            raise forged(thread, entry, "was signed for no place", _WHO)

    def stamp(self, about: str, value: bytes) -> bytes:
        mac = self._over(self._first, ["everstep value", about, value])
        return f"{self._first} {mac} ".encode() + value

    def stamped(self, about: str, stored: bytes) -> bytes | None:
        key_id, mac, value = [*stored.split(b" ", 2), b"", b""][:3]
        known = key_id.decode("utf-8", "replace")
        if known not in self._keyed:
            return None
        made = self._over(known, ["everstep value", about, value])
        return value if hmac.compare_digest(made.encode(), mac) else None

    def _mac(
        self, key_id: str, thread: str, n: int, behind: str, kind: str, fields: Iterable[tuple[str, bytes]]
    ) -> str:
        added = _ADDED_TO.get(kind, _ADDED)
        if kind == "task_answered":  # before its question: which task will ask is the script's to say
            fields = list(fields)
            added = added if any(name == "question" for name, _ in fields) else added | {"task"}
        said: list[str | bytes] = ["everstep entry", key_id, thread, str(n), behind, "run" if kind in RUNS else kind]
        for pair in sorted([each for each in fields if each[0] not in added]):
            said += pair
        return self._over(key_id, said)

    def _over(self, key_id: str, said: list[str | bytes]) -> str:
        made = self._keyed[key_id].copy()
        made.update(pack(said))  # no two lists have the same bytes
        return base64.urlsafe_b64encode(made.digest())[:43].decode()


_WHO = "somebody without the key wrote it; `everstep recover --thread THREAD` shows what can be cut off"


def forged(thread: str, entry: e.Entry, why: str, fix: str = _WHO) -> Forged:
    """The error for an entry, which names it."""
    error = Forged(f"entry {entry.id} ({entry.kind}) {why}", checkpoint=str(entry.n), fix=fix)
    error.of(thread)
    return error


def place_of(entry: e.Entry) -> Place | None:
    """Where a fact was signed for; None where it says nothing of it."""
    found = _SIG.fullmatch(entry.text(FIELD)) if FIELD in entry.raw else None
    return Place(int(found[2]), found[3]) if found is not None and found[3] is not None else None


def placed(thread: str, entry: e.Entry, n: int, digest: str) -> None:
    """Raises Forged for a fact that was signed for another checkpoint n than the one of this digest (0: the birth)."""
    place = place_of(entry)
    if place is not None and place.n == n and place.behind not in (ANYWHERE, digest[:BEHIND]):
        raise forged(thread, entry, f"was signed for another checkpoint {n} than the one that stands here")


def checked(signer: Signer | None, thread: str, found: list[e.Entry]) -> list[e.Entry]:
    """Entries of a thread, all signed as they should be, where there is a signer. Raises Forged."""
    if signer is not None:
        for entry in found:
            signer.check(thread, entry)
    return found


def sealed(
    signer: Signer | None, thread: str, new: Sequence[e.Fields], after: tuple[int, str] | None
) -> Sequence[e.Fields]:
    """Entries that come behind checkpoint `after`, each with its signature; as they are where nothing is signed."""
    if signer is None or not new:
        return new
    n, digest = after if after is not None else (0, str(new[0].get("birth", "")))
    made: list[e.Fields] = []
    for fields in new:
        made.append(fields if FIELD in fields else signer.seal(thread, n, digest, fields))
        if fields["kind"] == e.CHECKPOINT:
            n, digest = n + 1, str(fields["digest"])
    return made


def _is_plain(entry: e.Entry) -> bool:
    """May a script of ours have written it by itself?"""
    allowed = _PLAIN.get(entry.kind)
    if allowed is None or not entry.raw.keys() <= allowed:
        return False
    if entry.kind == "task_failed":
        said = entry.json("error")
        return isinstance(said, dict) and cast("dict[str, object]", said).get("type") == "Poison"
    return entry.kind != "task_added" or "parts" in entry.raw or entry.text("task").startswith("g")


# keys


def of_environment(environ: Mapping[str, str] | None = None) -> Keyring | None:
    """The keys that the environment names; None if it names none: nothing is signed or checked then.

    `EVERSTEP_SIGNING_KEY`: `id:base64key`, several with spaces or lines between. `EVERSTEP_SIGNING_KEY_FILE`: a file of
    such lines, `#` begins a comment; a process reads it once. `EVERSTEP_SIGNING_UNSIGNED=accept`: what is not signed is
    taken all the same. Raises SigningKeyError, which never shows a key.
    """
    said = os.environ if environ is None else environ
    text, file, unsigned = said.get(KEY, ""), said.get(KEY_FILE, ""), said.get(UNSIGNED, "refuse")
    if not (text or file):
        return None
    if text and file:
        raise SigningKeyError(f"both {KEY} and {KEY_FILE} are set", fix="set one of them")
    if unsigned not in ("refuse", "accept"):
        raise SigningKeyError(f"{UNSIGNED} is neither refuse nor accept", fix="leave it out to refuse")
    return _ring(text, file, unsigned == "refuse")


@lru_cache(8)
def _ring(text: str, file: str, strict: bool) -> Keyring:
    lines = _lines(Path(file)) if file else text.split()
    return Keyring(_keys(lines, KEY_FILE if file else KEY), strict=strict)


def takes_inbox(signer: Signer | None, environ: Mapping[str, str] | None = None) -> bool:
    """May messages of the inbox, which nobody can sign, become runs? `EVERSTEP_SIGNING_INBOX=allow` says yes."""
    said = os.environ if environ is None else environ
    return signer is None or not signer.strict or said.get(INBOX, "") == "allow"


def _lines(path: Path) -> list[str]:
    """The lines of a file that others may not read. Raises SigningKeyError."""
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise SigningKeyError(f"{KEY_FILE} names {str(path)!r}, which is no file", fix="give a regular file")
            if about.st_mode & 0o007:
                raise SigningKeyError(
                    f"the file of signing keys {str(path)!r} is open to others (mode {about.st_mode & 0o777:o})",
                    fix=f"chmod 600 {path}",
                )
            text = file.read(FILE_MAX + 1)
    except OSError as error:
        what = f"the file of signing keys {str(path)!r} can't be read: {error.strerror}"
        raise SigningKeyError(what, fix=f"see to the path in {KEY_FILE}") from None
    if len(text) > FILE_MAX:
        raise SigningKeyError(f"the file of signing keys {str(path)!r} is over {FILE_MAX} bytes", fix="one key a line")
    return [line.strip() for line in text.decode("utf-8", "replace").splitlines()]


def _keys(lines: Iterable[str], source: str) -> dict[str, bytes]:
    """Keys from lines of id:base64key. Errors name the line by its number: what stands in it may be a key."""
    found: dict[str, bytes] = {}
    for i, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        key_id, _, encoded = line.partition(":")
        try:
            key = base64.b64decode(encoded.strip(), altchars=None, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if not key or not _KEY_ID.fullmatch(key_id):
            raise SigningKeyError(
                f"line {i} of {source} is not id:base64key", fix="as in k1:$(openssl rand -base64 32)"
            )
        if key_id in found:
            raise SigningKeyError(f"{source} has the key {key_id!r} twice", fix="give each key an id of its own")
        found[key_id] = key
    return found


def adds(tasks: Iterable[tuple[str, str, float]], sums: Iterable[str]) -> str:
    """What a Command adds, as its run's fact says it: `[node, queue]` per task, then `[sum]` per part of Sends."""
    return json.dumps([*([node, queue] for node, queue, _ in tasks), *([each] for each in sums)])

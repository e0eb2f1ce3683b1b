"""Secrets in files that git knows, or would add: found by their forms, offline, in a fraction of a second.

    python .ci/secrets.py [FILE ...]        each find as FILE:LINE: what; exit code 1 if there is one

Only the kind and the place are printed, never the secret. A line that says `not a secret` is passed over.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ALLOWED = "not a secret"
SIZE_MAX = 4 * 2**20
KINDS = {
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a key of a model's provider": r"\bsk-(?:ant-|proj-|or-)?[A-Za-z0-9_-]{32,}",
    "a Google key": r"\bAIza[0-9A-Za-z_-]{35}",
    "a Stripe key": r"\b[rs]k_live_[0-9A-Za-z]{20,}",
    "a PyPI token": r"\bpypi-[A-Za-z0-9_-]{50,}",
    "an npm token": r"\bnpm_[A-Za-z0-9]{36}",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{34}",
    "a LangSmith key": r"\blsv2_[a-z]{2}_[0-9a-f]{32}",
    "a web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    "a password in a URL": r"\b[a-z][a-z0-9+.-]*://[^\s:/@'\"{}$]*:[^\s:/@'\"{}$*<]{10,}@",
    "a password by name": r"(?i)\b(?:password|passwd|secret|api_?key)['\"]?\s*[:=]\s*"
    r"['\"](?=[^'\"]*\d)[^\s'\"{}$<>]{20,}['\"]",
}
RULES = {kind: re.compile(rule) for kind, rule in KINDS.items()}


def main(given: list[str]) -> int:
    found = [each for path in given or known() for each in scanned(Path(path))]
    for line in found:
        print(line)
    return 1 if found else 0


def known() -> list[str]:
    """What git knows, and what it would add."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    said = subprocess.run(listed, capture_output=True, check=True, text=True).stdout  # noqa: S603 - constant words
    return [name for name in said.split("\0") if name]


def scanned(path: Path) -> Iterator[str]:
    if not path.is_file() or path.stat().st_size > SIZE_MAX:
        return
    text = path.read_text(errors="replace")
    for kind, rule in RULES.items():
        for match in rule.finditer(text):
            number = text.count("\n", 0, match.start()) + 1
            if ALLOWED not in text.splitlines()[number - 1]:
                yield f"{path}:{number}: looks like {kind}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

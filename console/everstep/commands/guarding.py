"""acl: Redis users that may do what they have to, and nothing else."""

from __future__ import annotations

import os
from dataclasses import replace

import click

from ..site import Site


@click.command()
@click.argument("action", type=click.Choice(["print"]))
@click.option("--worker", "role", flag_value="worker", help="For `everstep worker`: claims, runs, commits, recovers.")
@click.option("--producer", "role", flag_value="producer", help="For programs that submit, answer, cancel, fork.")
@click.option("--reader", "role", flag_value="reader", help="For dashboards: reads all, writes nothing.")
@click.option("--inbox", "role", flag_value="inbox", help="For senders: one XADD to the inbox, and nothing else.")
@click.option("--user", metavar="NAME", help="Its name (everstep-ROLE).")
@click.option("--password-env", metavar="VAR", help="Its password is in this variable; its hash is printed.")
@click.option("--rq-prefix", metavar="P", help="What RQ's keys begin with (rq; RQ_KEY_PREFIX).")
@click.option("--stock", is_flag=True, help="With what RQ's own worker needs, for `rq worker -j everstep.RQJob`.")
@click.option("--file", "as_file", is_flag=True, help="As a line for redis.conf or an ACL file.")
@click.pass_obj
def acl(
    site: Site,
    action: str,
    role: str | None,
    user: str | None,
    password_env: str | None,
    rq_prefix: str | None,
    stock: bool,
    as_file: bool,
) -> None:
    """Print a Redis user with the least rights for its role. Nothing is sent; paste the line as an administrator.

    \b
    everstep acl print --worker --password-env WORKER_PASSWORD
    everstep acl print --reader --namespace shop --file >> users.acl
    """
    import shlex

    from everstep_scheduler.moves.connection import redis_cli

    from ..acl import ROLES, Role, rules

    found: Role | None = next((each for each in ROLES if each == role), None)
    if found is None:
        raise click.UsageError("say for whom: --worker, --producer, --reader or --inbox")
    keys = replace(site.keys, rq=rq_prefix) if rq_prefix else site.keys
    said = rules(found, keys, password=_password(password_env), stock=stock)
    named = user or f"everstep-{found}"
    if not password_env:
        site.say('put the hash of its password in: printf %s "$PASSWORD" | sha256sum; or use --password-env')
    click.echo(" ".join(["user", named, *said]) if as_file else redis_cli(site.url, "ACL", "SETUSER", named, *said))
    if not as_file:
        site.say(f"then `{shlex.join(['redis-cli', 'ACL', 'SAVE'])}` if the server has an ACL file, else keep the line")


def _password(variable: str | None) -> str:
    if variable is None:
        return ""
    found = os.environ.get(variable, "")
    if not found:
        raise click.UsageError(f"the environment variable {variable} is empty or not set")
    return found

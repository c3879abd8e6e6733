"""`jobvisor config`."""

from __future__ import annotations

import click

from jobvisor_cli import reach, streams
from jobvisor_cli.command import Command, as_json


@click.command("config", cls=Command)
@click.option("--reload", is_flag=True, help="let the daemon read the files again, as SIGHUP does")
@as_json("one JSON object per setting and line")
def command(reload: bool, as_json: bool) -> None:
    """Show the configuration that is in effect, and where each value comes from.

    It is in `config.toml` in the daemon's home; the system's daemon reads /etc/jobvisor/config.toml first. A file that
    is wrong is refused, and what was in effect before stays so. What can be set: docs/queue.md.
    """
    with reach.client() as client:
        settings = client.reload() if reload else client.config()
    if as_json:
        import msgspec

        for setting in settings:
            streams.json_line(msgspec.to_builtins(setting))
        return
    rows = [(each.name, "no limit" if each.value is None else str(each.value), each.source) for each in settings]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (f"{name:<{widths[0]}}  {value:<{widths[1]}}  {source}\n" for name, value, source in rows)
    streams.result("".join(lines))

"""`jobvisor types [TYPE] [--json]`."""

from __future__ import annotations

import inspect
from typing import Any

import click

from jobvisor_cli import options, streams
from jobvisor_cli.command import COLUMN, Command, Positional, TypeName, described
from jobvisor_cli.loading import BrokenType, load, one_line
from jobvisor_cli.wording import unknown
from jobvisor_workers import registry
from jobvisor_workers.jobtype import JobType, arguments, describe

RETRY = {
    "never": "a failed job is never to be repeated as it was",
    "restart": "a failed job can be retried from the beginning",
    "continue": "a failed job can be retried, with --keep-partial from where it was",
}


@click.command("types", cls=Command)
@click.argument(
    "type", cls=Positional, description="show all about this one", required=False, type=TypeName(), metavar="[TYPE]"
)
@click.option("--json", "as_json", is_flag=True, help="one JSON object per type and line, with the schema")
@click.pass_context
def command(ctx: click.Context, type: str | None, as_json: bool) -> None:
    """Show the job types, or all about one of them."""
    if type is not None and type not in registry.names():
        raise unknown("job type", type, registry.names(), ctx)
    names = registry.names() if type is None else [type]
    if as_json:
        import msgspec

        for name in names:
            streams.result(msgspec.json.encode(_content(name, strict=type is not None)).decode() + "\n")
    elif type is None:
        formatter = ctx.make_formatter()
        formatter.write_dl([("TYPE", "SUMMARY"), *((name, one_line(name)) for name in names)], col_max=20)
        streams.result("\n".join(line.removeprefix("  ") for line in formatter.getvalue().split("\n")))
    else:
        streams.result(_page(load(type), ctx))


def _content(name: str, *, strict: bool) -> dict[str, Any]:
    try:
        job_type = load(name)
    except BrokenType as error:
        if strict:
            raise
        return {"type": name, "error": error.why}
    return describe(job_type)


def _page(job_type: type[JobType], ctx: click.Context) -> str:
    formatter = ctx.make_formatter()
    parameters = options.of_type(arguments(job_type))
    positional = [each for each in parameters if isinstance(each, click.Argument)]
    formatter.write_usage(
        f"jobvisor run {job_type.name()}", " ".join(["[OPTIONS]", *(each.make_metavar(ctx) for each in positional)])
    )
    formatter.write_paragraph()
    formatter.write_text(inspect.getdoc(job_type) or "")
    named = [each for each in parameters if isinstance(each, click.Option)]
    for title, group in (("Arguments", positional), ("Options", named)):
        if group:
            with formatter.section(title):
                formatter.write_dl(described(group, ctx), col_max=COLUMN)
    formatter.write_paragraph()
    facts = [RETRY[job_type.retry], "it can be suspended" if job_type.can_suspend else "it cannot be suspended"]
    if job_type.delegated:
        facts.append("the work is done inside another program (libvirtd or QEMU)")
    formatter.write_text("; ".join(facts).capitalize() + ".")
    return formatter.getvalue()

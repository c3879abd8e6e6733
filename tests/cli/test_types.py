from __future__ import annotations

import json

from support.command import Cli


def test_table(cli: Cli) -> None:
    done = cli.run("types")
    parts = (line.partition(" ") for line in done.stdout.splitlines())
    lines = {name: rest.strip() for name, _, rest in parts}
    assert done.stdout.startswith("TYPE          SUMMARY\n")
    assert lines["clone"] == "Copy a volume to a new one of the same format."
    assert lines["pace"] == "Read a volume, at the pace of a test."
    assert lines["broken"].startswith("(cannot be loaded: ModuleNotFoundError")
    assert (done.returncode, done.stderr) == (0, "")


def test_long_form(cli: Cli) -> None:
    page = cli.run("types", "pace").stdout
    assert page.startswith("Usage: jobvisor run pace [OPTIONS] SOURCE\n")
    assert "It begins when it is told and ends when it is told." in page
    assert "  SOURCE  volume to read\n" in page
    assert "bytes per step  [default: 1 MiB]" in page
    assert "A failed job can be retried from the beginning; it can be suspended." in page
    assert "it cannot be suspended" in cli.run("types", "rigid").stdout


def test_json(cli: Cli) -> None:
    found = {entry["type"]: entry for entry in map(json.loads, cli.run("types", "--json").stdout.splitlines())}
    assert {"checksum", "clone", "wipe", "pace", "rigid", "broken"} <= set(found)
    assert "ModuleNotFoundError" in found["broken"]["error"]
    pace = found["pace"]
    assert set(pace) == {
        "type", "summary", "description", "arguments", "schema", "retry", "can_suspend", "delegated",
    }  # fmt: skip
    assert (pace["retry"], pace["can_suspend"], pace["delegated"]) == ("restart", True, False)
    by_name = {argument["name"]: argument for argument in pace["arguments"]}
    assert by_name["source"]["resource"] == {
        "kind": "volume", "access": "read", "new": False, "written_if": None, "piped": False,
    }  # fmt: skip
    assert by_name["target"]["resource"]["new"] is True
    assert by_name["target"]["description"] == "a file to make"
    assert by_name["chunk"]["kind"] == "size"
    assert by_name["color"]["choices"] == ["green", "red"]
    assert pace["schema"]["$defs"]["Pace"]["properties"]["key"]["maximum"] == 255


def test_json_of_one(cli: Cli) -> None:
    assert json.loads(cli.run("types", "clone", "--json").stdout)["type"] == "clone"
    assert cli.run("types", "broken", "--json").returncode == 1

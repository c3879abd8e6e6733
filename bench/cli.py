"""What a command costs before it does anything, beside `python -c "import click"`: ratios count, times wander.

python bench/cli.py [--rounds N] [--cold N]

All commands take turns in each round. Cold: a home that does not exist, from the call of `jobvisor list` to its end.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("jobvisor")
JOBS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="how often each command is run")
    parser.add_argument("--cold", type=int, default=20, help="how often a daemon is started")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jobvisor-bench-") as work:
        warm(Path(work), arguments.rounds)
        cold(Path(work), arguments.cold)


def warm(work: Path, rounds: int) -> None:
    """With a daemon that has some jobs."""
    environment = in_home(work / "home")
    (work / "img").write_bytes(b"x")
    program = [str(PROGRAM)]
    commands = {
        'python -c "import click"': ([sys.executable, "-c", "import click"], {}),
        "jobvisor list": ([*program, "list", "--all"], {}),
        "jobvisor list --json": ([*program, "list", "--all", "--json"], {}),
        "jobvisor info": ([*program, "info"], {}),
        "jobvisor --help": ([*program, "--help"], {}),
        "jobvisor run wipe --help": ([*program, "run", "wipe", "--help"], {}),
        "complete a command": (program, completing("jobvisor su")),
        "complete a job": (program, completing("jobvisor info ")),
        "complete an option": (program, completing("jobvisor run clone --")),
        "jobvisor start checksum": ([*program, "start", "checksum", str(work / "img")], {}),
    }
    for _ in range(JOBS):
        took([*program, "start", "checksum", str(work / "img")], environment)
    times: dict[str, list[float]] = {name: [] for name in commands}
    try:
        for _ in range(rounds):
            for name, (argv, more) in commands.items():
                times[name].append(took(argv, {**environment, **more}))
    finally:
        subprocess.run([PROGRAM, "daemon", "--stop"], env=environment, stderr=subprocess.DEVNULL)
    base = statistics.median(next(iter(times.values())))
    print(f"{'command':<28} {'median ms':>10} {'ratio':>6}   ({rounds} rounds)")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:<28} {median * 1000:10.1f} {median / base:6.2f}")


def cold(work: Path, rounds: int) -> None:
    """From nothing running to the first answer."""
    values = []
    for number in range(rounds):
        environment = in_home(work / f"cold-{number}")
        values.append(took([str(PROGRAM), "list"], environment))
        subprocess.run([PROGRAM, "daemon", "--stop"], env=environment, stderr=subprocess.DEVNULL, check=True)
    values.sort()
    middle, worst = statistics.median(values), values[-1]
    print(
        f"\nnothing running → first answer: median {middle * 1000:.0f} ms, worst {worst * 1000:.0f} ms, {rounds} rounds"
    )


def in_home(home: Path) -> dict[str, str]:
    """As it is after an installation: with the modules compiled."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "JOBVISOR_HOME": str(home)}


def completing(words: str) -> dict[str, str]:
    """What a shell sets to have words completed."""
    return {"_JOBVISOR_COMPLETE": "zsh_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}


def took(argv: list[str], environment: dict[str, str]) -> float:
    begun = time.perf_counter()
    subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()

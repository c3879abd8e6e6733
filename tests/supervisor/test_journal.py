"""What the journal promises: durable where it matters, in order, and never overwriting what it does not understand."""

import os
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from jobvisor.errors import JournalError
from jobvisor.journal import Journal

WRITER = """
import sys
from jobvisor.journal import Journal
journal = Journal(sys.argv[1])
journal.post(lambda db: db.execute("CREATE TABLE t(x)"), durable=True).result()
print("ready", flush=True)
for line in sys.stdin:
    journal.post(lambda db: db.execute("INSERT INTO t VALUES (1)"), durable=line == "durable\\n").result()
    print("done", flush=True)
journal.close()
"""


def test_a_durable_batch_is_synced_and_another_is_not(tmp_path: Path) -> None:
    """Counted by strace in a process of its own."""
    log = tmp_path / "strace"
    command = ["strace", "-f", "-qq", "-e", "trace=fdatasync,fsync", "-o", str(log), sys.executable, "-c", WRITER]
    with subprocess.Popen(
        [*command, str(tmp_path / "journal.sqlite")], stdin=-1, stdout=-1, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()

        def syncs_of(kind: str) -> int:
            assert process.stdin is not None
            assert process.stdout is not None
            before = log.read_text().count("sync(")
            process.stdin.write(kind + "\n")
            process.stdout.readline()
            return log.read_text().count("sync(") - before

        counts = {kind: [syncs_of(kind) for _ in range(5)] for kind in ("durable", "soon", "durable")}
        process.stdin.close()

    assert min(counts["durable"]) >= 1
    assert counts["soon"] == [0] * 5


def test_results_come_back_in_the_order_of_the_posts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.post(lambda db: db.execute("CREATE TABLE t(x)"))

    def insert(number: int, db: sqlite3.Connection) -> int | None:
        return db.execute("INSERT INTO t VALUES (?)", (number,)).lastrowid

    futures = [journal.post(partial(insert, number)) for number in range(200)]
    assert [future.result(10) for future in futures] == list(range(1, 201))
    journal.close()


def test_one_that_finds_something_wrong_does_not_spoil_its_batch(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.post(lambda db: db.execute("CREATE TABLE t(x)")).result(10)

    def fail(_: sqlite3.Connection) -> None:
        raise LookupError("not there")

    good = [journal.post(lambda db: db.execute("INSERT INTO t VALUES (1)").rowcount) for _ in range(3)]
    bad = journal.post(fail)
    broken = journal.post(lambda db: db.execute("INSERT INTO nowhere VALUES (1)"))
    good += [journal.post(lambda db: db.execute("INSERT INTO t VALUES (1)").rowcount) for _ in range(3)]

    assert [future.result(10) for future in good] == [1] * 6
    with pytest.raises(LookupError):
        bad.result(10)
    with pytest.raises(JournalError):
        broken.result(10)
    assert journal.post(lambda db: db.execute("SELECT count(*) FROM t").fetchone()[0]).result(10) == 6
    journal.close()


@pytest.mark.parametrize("content", [b"this is no database at all, but a text of some length" * 20, b"\x00" * 8192])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"journal\.sqlite"):
        Journal(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE mine(x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="another program"):
        Journal(path)
    assert path.read_bytes() == before


def test_a_newer_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    Journal(path).close()
    with sqlite3.connect(path) as newer:
        newer.execute("PRAGMA user_version=99")
    newer.close()
    with pytest.raises(JournalError, match="newer jobvisor"):
        Journal(path)


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.sqlite").close()
    assert os.stat(tmp_path / "journal.sqlite").st_mode & 0o777 == 0o600

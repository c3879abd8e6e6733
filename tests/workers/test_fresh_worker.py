"""What a worker inherits from the zygote must not act on the worker's own files."""

from __future__ import annotations

from pathlib import Path

from jobvisor import Supervisor

JOB_TYPE = '''
from __future__ import annotations
import gc, os
from typing import Any
from jobvisor_workers import JobType, Worker

class Fill(JobType, tag="fill"):
    """Give every descriptor number below 64 to an empty file, then provoke what is left of the zygote."""

    def run(self, worker: Worker) -> dict[str, Any]:
        files = []
        while not files or files[-1] < 64:
            files.append(os.memfd_create("empty"))
        worker.child(["true"])  # its end sends SIGCHLD
        gc.unfreeze()
        gc.collect()
        return {"written": [fd for fd in files if os.fstat(fd).st_size], "files": len(files)}
'''


def test_nothing_of_the_zygote_writes_to_or_closes_a_workers_files(tmp_path: Path) -> None:
    module = tmp_path / "fill_type.py"
    module.write_text(JOB_TYPE)
    with Supervisor(tmp_path / "home", types=[str(module)]) as supervisor:
        info = supervisor.start("fill").wait(30)
    assert info.ok, info.errmsg
    assert info.result is not None
    assert info.result["files"] > 40
    assert info.result["written"] == []

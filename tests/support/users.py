"""Unprivileged users who ask a root daemon: children of the test that become somebody else before they connect."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.http import Http

#: The group that may use the daemon; no account is needed for it, nor for the users.
GROUP = 65530


@dataclass(frozen=True)
class User:
    name: str
    uid: int
    groups: tuple[int, ...] = (GROUP,)

    def do(self, work: Callable[[], Any]) -> Any:
        """What `work` returns (as JSON has it), in a process of this user. Raises AssertionError with its error."""
        if self.uid == 0:
            return json.loads(json.dumps(work()))
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(read)
                os.setgroups(self.groups)
                os.setgid(self.uid)
                os.setuid(self.uid)
                answer: dict[str, Any] = {"done": work()}
            except BaseException as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            with open(write, "w") as pipe:
                json.dump(answer, pipe)
            os._exit(0)
        os.close(write)
        with open(read) as pipe:
            content = json.load(pipe)
        os.waitpid(pid, 0)
        if "error" in content:
            raise AssertionError(content["error"])
        return content["done"]

    def ask(self, path: Path, method: str, target: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of an answer."""

        def work() -> tuple[int, Any]:
            answer = Http(path)(method, target, body)
            is_json = "json" in answer.headers.get("content-type", "")
            return answer.status, answer.json() if is_json else answer.content.decode()

        status, content = self.do(work)
        return status, content

    def hears(self, path: Path, query: str, count: int) -> list[int]:
        """The job ids of that many first events behind `query`; fewer, when the stream says something else first."""

        def work() -> list[int]:
            with Http(path).events(query) as events:
                heard = []
                for kind, _, content in events:
                    if kind == "state":
                        heard.append(content["job"]["id"])
                    if len(heard) == count:
                        break
                return heard

        heard: list[int] = self.do(work)
        return heard


OWN = User("own", 65533)
OTHER = User("other", 65532)
STRANGER = User("stranger", 65529, (65529,))
ROOT = User("root", 0)
#: libvirt serves and is asked by users who have an account only.
NOBODY = User("nobody", pwd.getpwnam("nobody").pw_uid)


@contextmanager
def room() -> Iterator[Path]:
    """A directory that everybody can reach: pytest's are for one user."""
    directory = Path(tempfile.mkdtemp(prefix="jobvisor-users-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)

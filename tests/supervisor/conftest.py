from collections.abc import Iterator
from pathlib import Path

import pytest

from jobvisor import Client, Supervisor, aio
from jobvisor.face import Face
from support.awaited import awaited


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Touch it to let the jobs of gate_types end."""
    return tmp_path / "gate"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(b"x" * 4096)
    return path


@pytest.fixture(params=["Supervisor", "Client", "aio.Supervisor", "aio.Client"])
def face(request: pytest.FixtureRequest, supervisor: Supervisor) -> Iterator[Face]:
    """Each class of the public interface, over a supervisor of the test's own."""
    if request.param == "Supervisor":
        yield supervisor
        return
    if request.param == "aio.Supervisor":
        brother = aio.Supervisor(supervisor.home)
        brother._construct = lambda: supervisor._core
        with awaited(brother) as dressed:
            yield dressed
        return
    with supervisor.serve() as socket:
        if request.param == "Client":
            with Client(socket) as client:
                yield client
        else:
            with awaited(aio.Client(socket)) as dressed:
                yield dressed

"""Daemons of libvirt for all tests; see support/libvirtd.py."""

from collections.abc import Iterator

import pytest

from support.libvirtd import Libvirtd, running_session_libvirtd, running_system_libvirtd


@pytest.fixture(scope="session")
def _system_libvirtd(request: pytest.FixtureRequest) -> Iterator[Libvirtd]:
    with running_system_libvirtd(request.config.cache.mkdir("libvirtd")) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def _session_libvirtd() -> Iterator[Libvirtd]:
    with running_session_libvirtd() as daemon:
        yield daemon


@pytest.fixture
def libvirtd(_system_libvirtd: Libvirtd) -> Iterator[Libvirtd]:
    """Root's daemon, with empty pools."""
    yield _system_libvirtd
    _system_libvirtd.restore()


@pytest.fixture
def session_libvirtd(_session_libvirtd: Libvirtd) -> Iterator[Libvirtd]:
    """An unprivileged user's daemon, with empty pools."""
    yield _session_libvirtd
    _session_libvirtd.restore()

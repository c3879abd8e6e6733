"""Names of libvirt's objects: what is one, what it names, and by what two are told apart."""

import pytest

from jobvisor_workers.errors import BadArgument
from jobvisor_workers.resources import uri
from jobvisor_workers.resources.uri import Name


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("vol://default/vm1.qcow2", Name("default", "vm1.qcow2")),
        ("vol://my%20pool/a%3Fb%25", Name("my pool", "a?b%")),
        ("vol://p/ü.img", Name("p", "ü.img")),
        ("vol://p/name?x#y", Name("p", "name?x#y")),
        ("pool://default", Name("default")),
    ],
)
def test_a_name_says_pool_and_volume(written: str, name: Name) -> None:
    assert uri.parse(written) == name
    assert uri.parse(str(name)) == name


@pytest.mark.parametrize(
    "written",
    [
        "vol://",
        "vol://p",
        "vol://p/",
        "vol:///v",
        "vol://p/a/b",
        "vol://p/a%2Fb",
        "vol://p/a%00b",
        "vol://p/100%",
        "pool://",
        "pool://a/b",
    ],
)
def test_what_names_nothing_is_refused_with_its_form(written: str) -> None:
    with pytest.raises(BadArgument, match=r"has the form (vol|pool)://"):
        uri.parse(written)


def test_the_same_name_of_another_user_or_libvirt_is_something_else() -> None:
    name = Name("p", "v")
    keys = {uri.key(name, at, uid) for at in ("qemu:///system", "qemu:///session") for uid in (0, 1000)}
    assert len(keys) == 4
    assert uri.key(uri.parse("vol://p/%76"), "u", 0) == uri.key(name, "u", 0)


@pytest.mark.parametrize(
    ("connect", "local"),
    [
        ("qemu:///system", True),
        ("qemu+unix:///system?socket=/run/x", True),
        ("qemu+ssh://root@host/system", False),
        ("qemu+tls://[::1]/system", False),
        ("test:///default", True),
    ],
)
def test_paths_of_another_host_are_not_ours(connect: str, local: bool) -> None:
    assert uri.is_local(connect) is local

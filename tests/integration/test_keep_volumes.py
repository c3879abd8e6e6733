"""--keep-partial with volumes of libvirt's: what is kept lies in the pool, and goes on as beside it."""

from pathlib import Path

from jobvisor import Supervisor
from jobvisor.testing import kill_at
from support.images import MIB, filled
from support.libvirtd import Libvirtd

SIZE = 24 * MIB


def test_a_clone_and_a_wipe_in_a_pool_go_on(libvirtd: Libvirtd, tmp_path: Path) -> None:
    pool = libvirtd.pool("dir")
    source, target = filled(pool / "kept-source", SIZE), pool / "kept-target"
    libvirtd.refresh("dir")
    content = source.read_bytes()
    types = ["jobvisor_workers.testing", "support.keep_types"]
    with Supervisor(tmp_path / "home", types=types) as supervisor:
        with kill_at(supervisor, "copy", after=12 * MIB) as death:
            job = supervisor.start(
                "clone",
                source="vol://dir/kept-source",
                target="vol://dir/kept-target",
                keep_partial=True,
                connect=libvirtd.uri,
            )
        assert death.info.partial
        assert Path(str(death.info.partial.path)).parent == pool
        again = job.retry().wait(60)
        assert (again.ok, again.data_continued) == (True, 8 * MIB), again.errmsg
        assert target.read_bytes() == content
        assert {"kept-source", "kept-target"} == {name for name in libvirtd.volumes("dir") if "kept" in name}
        assert not list(pool.glob(".jobvisor-*"))

        with kill_at(supervisor, "pass 1 of 1: 0x00", after=12 * MIB):
            job = supervisor.start("wipe", volume="vol://dir/kept-target", keep_partial=True, connect=libvirtd.uri)
        again = job.retry().wait(60)
        assert again.ok, again.errmsg
        assert again.data_continued
        assert target.read_bytes() == bytes(SIZE)

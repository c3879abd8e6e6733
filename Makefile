# Needs git, make and Python 3.11 or newer; each target sets up the rest. PYTHON=… chooses the interpreter.

# mke2fs, mkfs.* and losetup are not on the path of every user.
export PATH := $(PATH):/usr/sbin:/sbin
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check bench clean setup-demo setup-test setup-bench

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r name what; do \
		printf '  make %-12s %s\n' "$$name" "$$what"; done

demo: setup-demo ## clone a real disk image, with a progress bar, and prove the clone
	@sh docs/examples/demo.sh

test: check ## everything: the linters, then pytest; ARGS='-k clone -x' goes to pytest
	$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

check: setup-test ## ruff, mypy, import-linter
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup-bench ## beside today's best tools: launch, data rates, volumes, the command line; the daemon under load (2 GB), its queue
	$(BIN)/python bench/launch.py
	$(BIN)/python bench/daemon.py
	$(BIN)/python bench/data.py
	$(BIN)/python bench/storage.py
	$(BIN)/python bench/cli.py
	$(BIN)/python bench/schedule.py

# Idempotent, and once done it needs neither the network nor more than a second.
setup-demo setup-test setup-bench: export NEEDED = $(NEEDED_BY)
setup-demo setup-test setup-bench: export SETUP = $(SETUP_SH)
setup-demo setup-test setup-bench: setup-%:
	@sh -euc "$$SETUP" setup $* "$(PYTHON)"

clean: ## remove .venv, the demo's images, caches and builds
	rm -rf .venv demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*
	find workers supervisor cli tests docs bench -name __pycache__ -type d -prune -exec rm -rf {} +

# What must be there, who needs it first (test includes demo, bench includes test), and the packages that bring it.
# A program, unless it is a header, a .pc file, or the Python module that venv needs and Debian splits off.
# libvirt-python has no wheels: it is compiled, hence the headers. X.Y is the version of the chosen Python.
# redis-server: Fedora 41 replaced redis by valkey; dnf finds either by the program it brings.
define NEEDED_BY
qemu-img            demo   qemu-utils         qemu-img
mke2fs              demo   e2fsprogs          e2fsprogs
ensurepip           demo   pythonX.Y-venv     python3-libs
qemu-io             test   qemu-utils         qemu-img
qemu-system-x86_64  test   qemu-system-x86    qemu-system-x86-core
mkfs.xfs            test   xfsprogs           xfsprogs
mkfs.btrfs          test   btrfs-progs        btrfs-progs
losetup             test   mount              util-linux
flock               test   util-linux         util-linux
curl                test   curl               curl
jq                  test   jq                 jq
bindfs              test   bindfs             bindfs
fusermount3         test   fuse3              fuse3
strace              test   strace             strace
gcc                 test   gcc                gcc
stdio.h             test   libc6-dev          glibc-devel
Python.h            test   pythonX.Y-dev      pythonX.Y-devel
pkg-config          test   pkg-config         pkgconf-pkg-config
libvirt.pc          test   libvirt-dev        libvirt-devel
libvirtd            test   libvirt-daemon     libvirt-daemon libvirt-daemon-driver-storage
virt-qemu-run       test   libvirt-daemon-driver-qemu libvirt-daemon-driver-qemu
virsh               test   libvirt-clients    libvirt-client
parted              test   parted             parted
systemd-inhibit     test   systemd            systemd
dbus-daemon         test   dbus               dbus-daemon
dbusmock            test   python3-dbusmock   python3-dbusmock
zsh                 test   zsh                zsh
fish                test   fish               fish
man                 test   man-db             man-db
groff               test   groff-base         groff-base
scrub               bench  scrub              scrub
nbdcopy             bench  libnbd-bin         libnbd
rsync               bench  rsync              rsync
tsp                 bench  task-spooler       task-spooler
redis-server        bench  redis-server       /usr/bin/redis-server
endef

define SETUP_SH
level=$$1 PYTHON=$$2
say() { printf '%s\n' "$$*" >&2; }
die() { say "error: $$*"; exit 1; }
loud() { say "$$ $$*"; "$$@"; }
venv=$$(pwd -P)/.venv

# -- the interpreter: PYTHON, else the one .venv was made with, else the first that is new enough
# pip names the directory the venv was made in: one that was copied or moved would run its old place's programs.
usable_venv() { grep -qsF "$$venv/bin/python" .venv/bin/pip && .venv/bin/python -c '' 2>/dev/null; }
about() { "$$1" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
if [ -n "$$PYTHON" ]; then set -- "$$PYTHON"
elif usable_venv; then set -- .venv/bin/python
else set -- python3 python3.11 python3.12 python3.13 python3.14
fi
python= version= seen=
for candidate; do
    if version=$$(about "$$candidate"); then python=$$candidate; break; fi
    if [ -n "$$version" ] || [ -n "$$PYTHON" ]; then seen="$${seen:+$$seen, }$$candidate is $${version:-not a Python that runs}"; fi
done
[ -n "$$python" ] || die "jobvisor needs Python 3.11 or newer; $${seen:-there is none on PATH}. Install one, then: make $$level PYTHON=/path/to/python3.11"

# -- system packages
have() {
    case $$1 in
        ensurepip)  "$$python" -c 'import ensurepip, venv' ;;
        Python.h)   [ -e "$$("$$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ;;
        stdio.h)    printf '#include <stdio.h>\n' | gcc -fsyntax-only -x c - ;;
        libvirt.pc) pkg-config --exists libvirt ;;
        dbusmock)   /usr/bin/python3 -c 'import dbusmock' ;;
        *)          command -v "$$1" ;;
    esac >/dev/null 2>&1
}
look() {
    missing= debian= fedora=
    while read -r what first deb rpm; do
        case $$level:$$first in demo:test|demo:bench|test:bench) continue ;; esac
        have "$$what" && continue
        missing="$$missing $$what" debian="$$debian $$deb" fedora="$$fedora $$rpm"
    done <<ROWS
$$(printf '%s\n' "$$NEEDED" | sed "s/X\.Y/$$version/")
ROWS
}
look
if [ -n "$$missing" ]; then
    say "missing for 'make $$level':$$missing"
    if command -v apt-get >/dev/null; then
        # A machine just started may still be installing its own updates: wait for the lock.
        set -- env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 $$debian
        update="apt-get update"
    elif command -v dnf >/dev/null; then
        set -- dnf install -y --setopt=install_weak_deps=False $$fedora
        update=
    else
        die "this set-up knows apt-get (Debian, Ubuntu) and dnf (Fedora), and finds neither. Install what is named above, then run make again. The packages are called on Debian:$$debian; on Fedora:$$fedora"
    fi
    as_root="As root run: $${update:+$$update && }$$*"
    sudo=
    if [ "$$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || die "installing needs root, and there is no sudo. $$as_root"
        sudo=sudo
    fi
    if [ -n "$$update" ]; then
        # Lists that are absent or too old do not know the packages; lists a little old name versions gone from the mirror.
        apt-get install -s --no-install-recommends $$debian >/dev/null 2>&1 || loud $$sudo $$update || :
        loud $$sudo "$$@" || { loud $$sudo $$update && loud $$sudo "$$@"; } || die "installing failed, see above. $$as_root"
    else
        loud $$sudo "$$@" || die "installing failed, see above. $$as_root"
    fi
    look
    [ -z "$$missing" ] || die "still missing after the installation:$$missing (Python is $$python, $$version)"
fi

# -- .venv: the stamp holds what was installed, so that a changed pyproject.toml is installed again
case $$level in
    demo)  extras=                 more= ;;
    test)  extras='[dev,libvirt]'  more= ;;
    bench) extras='[dev,libvirt]'  more='rq' ;;
esac
stamp="$$(cksum <pyproject.toml) $$version"
[ "$$(cat ".venv/set-up-$$level" 2>/dev/null)" = "$$stamp" ] && usable_venv && exit 0
if ! { usable_venv && [ "$$(about .venv/bin/python)" = "$$version" ]; }; then
    loud "$$python" -m venv --clear .venv || die "cannot make .venv with $$python"
fi
loud .venv/bin/pip install --quiet --disable-pip-version-check --editable ".$$extras" $$more || die "pip failed, see above"
for done in demo test bench; do
    printf '%s\n' "$$stamp" >".venv/set-up-$$done"
    [ "$$done" = "$$level" ] && break
done
endef

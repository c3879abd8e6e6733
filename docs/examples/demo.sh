#!/bin/sh
# What `make demo` runs: a real disk image, cloned by a worker process, and the proof that the clone is the same.
set -eu
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin # mke2fs is not on the path of every user

[ -x .venv/bin/jobvisor ] || { echo "error: .venv/bin/jobvisor is not there; run: make demo" >&2; exit 1; }

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

jobvisor() { .venv/bin/jobvisor "$@"; }

echo "A disk image of 512 MiB, qcow2, with an ext4 filesystem of 320 MiB of files in it:"
rm -rf demo
mkdir -p demo/files
for n in 1 2 3 4 5 6 7 8 9 10; do
    head -c 32M /dev/urandom >"demo/files/data$n.bin"
done
run mke2fs -q -t ext4 -d demo/files demo/base.raw 512M
run qemu-img convert -f raw -O qcow2 demo/base.raw demo/base.qcow2
rm -rf demo/files demo/base.raw # only the image is of use from here on

run jobvisor run clone demo/base.qcow2 demo/clone.qcow2
run jobvisor run clone demo/base.qcow2 demo/clone2.qcow2 --info

for clone in demo/clone.qcow2 demo/clone2.qcow2; do
    printf '\n$ %s\n' "qemu-img compare demo/base.qcow2 $clone"
    verdict=$(qemu-img compare -f qcow2 -F qcow2 demo/base.qcow2 "$clone") || true
    printf '%s\n' "$verdict"
    if [ "$verdict" != "Images are identical." ]; then
        echo "error: $clone is not what demo/base.qcow2 is" >&2
        exit 1
    fi
done

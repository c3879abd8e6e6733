"""The program that a supervisor starts: the zygote, which becomes each worker by a fork."""

import atexit
import os

from jobvisor_workers import leave

atexit.register(leave.leave)


def main() -> None:
    """Entry point; sys.argv[1] is an encoded `zygote.Config`."""
    if os.fork():  # the host's child ends here: no process of ours is left for its waitpid(-1) to meet
        os._exit(0)
    import ctypes
    import gc
    import sys

    import msgspec

    from jobvisor_workers import registry, runtime, signals, zygote

    signals.forget_hosts()
    config = msgspec.json.decode(sys.argv[1], type=zygote.Config)
    with open("/proc/self/comm", "w") as file:
        file.write("jobvisor-zygote")
    set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER of <linux/prctl.h>
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)
    registry.preload(config.modules)
    gc.collect()
    gc.freeze()
    # Kept by this frame: taking it apart in each worker would touch (and so copy) its share of the zygote's memory.
    server = zygote.Zygote(config)
    spawned = server.serve()
    if spawned is not None:
        runtime.main(spawned)

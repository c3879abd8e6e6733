"""The program `jobvisor`: errors become one line on stderr and an exit code, never a traceback."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command in sys.argv and leave with its exit code."""
    gc.set_threshold(50_000)  # loading makes many objects and no garbage: looking for some is a tenth of the time
    # Until there is a job, ^C and a closed pipe end the command as they end any other: there is nothing to tidy up.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    _open_standard_descriptors()
    sys.exit(_run())


def _run() -> int:
    import click

    from jobvisor.errors import JobvisorError
    from jobvisor_cli import streams
    from jobvisor_cli.root import cli
    from jobvisor_cli.wording import explained, sentence

    try:
        code = int(cli.main(prog_name="jobvisor", standalone_mode=False) or 0)
        streams.flush()
    except click.ClickException as error:
        streams.complain(sentence(error))
        return error.exit_code
    except JobvisorError as error:
        streams.complain(explained(error))
        return error.exit_code
    except streams.CannotWrite as error:
        streams.complain(str(error))
        return 1
    except Exception as error:  # a traceback would tell the user nothing
        streams.complain(
            f"{type(error).__name__}: {error} ({_place(error)}); this is a defect of jobvisor, please report it"
        )
        return 1
    return code


def _place(error: BaseException) -> str:
    """File and line in which an exception came up."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "nowhere"


def _open_standard_descriptors() -> None:
    """A descriptor 0 to 2 that is closed would be given to the first file opened, and our output would land in it."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


if __name__ == "__main__":
    main()

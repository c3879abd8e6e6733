"""A pseudo-terminal with a program on it, as a user sits before one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

CTRL_C, CTRL_Z = "\x03", "\x1a"


class Terminal:
    """Starts a program as the leader of a session with this terminal. `seen` is all that it wrote."""

    def __init__(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str, columns: int = 80, lines: int = 24
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))
        self.seen = ""
        self._looked = 0
        # Programs rather than preexec_fn: no Python runs between fork and exec. The tests may run under nohup.
        prefix = ["env", "--default-signal=HUP", "setsid", "--ctty", "--wait"]
        self.process = subprocess.Popen([*prefix, *argv], stdin=slave, stdout=slave, stderr=slave, env=env, cwd=cwd)
        os.close(slave)

    def keys(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, pattern: str, seconds: float = 30) -> re.Match[str]:
        """Read on until the pattern comes, behind what was expected before."""
        end = time.monotonic() + seconds
        while True:
            match = re.compile(pattern).search(self.seen, self._looked)
            if match:
                self._looked = match.end()
                return match
            assert self._read(end - time.monotonic()), f"{pattern!r} did not come; seen: {self.seen[-800:]!r}"

    def rest(self, seconds: float = 30) -> str:
        """All that comes until the program has closed the terminal."""
        end = time.monotonic() + seconds
        while self._read(end - time.monotonic()):
            pass
        return self.seen

    def resize(self, columns: int, lines: int = 24) -> None:
        """The window is made larger or smaller; the kernel tells the program by SIGWINCH."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def hang_up(self) -> None:
        """The window is closed."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hang_up()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            raise

    def _read(self, seconds: float) -> bool:
        if seconds <= 0 or not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            content = os.read(self._master, 65536)
        except OSError:  # EIO: nobody has the other side open
            return False
        self.seen += content.decode(errors="replace")
        return bool(content)


def bash(env: Mapping[str, str], cwd: str, *, columns: int = 80) -> Terminal:
    """A shell with job control and a prompt that tells when it is ready: `$ `."""
    terminal = Terminal(
        ["bash", "--norc", "--noprofile", "-i"],
        env={**env, "PS1": "$ ", "TERM": "xterm-256color", "HISTFILE": "", "BASH_SILENCE_DEPRECATION_WARNING": "1"},
        cwd=cwd,
        columns=columns,
    )
    # What readline writes around a line would be in the way of patterns; without it bash is as it is in scripts' eyes.
    terminal.expect(r"\$ ")
    terminal.keys("bind 'set enable-bracketed-paste off' 2>/dev/null; set +o emacs\n")
    terminal.expect(r"\n.*\$ ")
    return terminal

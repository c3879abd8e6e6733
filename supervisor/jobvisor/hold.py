"""What keeps new jobs from starting, by somebody's word."""

from __future__ import annotations

from msgspec import Struct

#: In the place of a uid, which is never negative.
EVERYBODY = -1


class Hold(Struct, frozen=True, kw_only=True):
    """Who lets nothing start, and why. `type`: of that job type, None: of any; `all_users`: not only their own jobs.

    `since`: seconds since the epoch.
    """

    user: str
    uid: int
    type: str | None = None
    all_users: bool = False
    reason: str
    since: float

    @property
    def scope(self) -> tuple[int, str]:
        """There is one hold of each."""
        return scope(self.uid, self.type, self.all_users)

    def covers(self, owner: int, type: str) -> bool:
        """True if it is about that user's jobs of that type."""
        return self.type in (None, type) and (self.all_users or self.uid == owner)

    @property
    def about(self) -> str:
        """Which jobs: "alice's wipe jobs"."""
        return about(self.user, self.type, self.all_users)

    def __str__(self) -> str:
        return f"held by {self.user}: {self.reason}"


def scope(uid: int, type: str | None, all_users: bool) -> tuple[int, str]:
    return (EVERYBODY if all_users else uid, type or "")


def about(user: str, type: str | None, all_users: bool) -> str:
    return f"{'everybody' if all_users else user}'s {f'{type} ' if type else ''}jobs"

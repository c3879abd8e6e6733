"""An object of jobvisor.aio in the clothes of its brother for threads, so that one test is for both."""

import asyncio
import inspect
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from jobvisor import aio

DRESSED = (aio.Client, aio.Supervisor, aio.Job, aio.EventStream)


class Awaited:
    """Its coroutines run on a loop in another thread, and are waited for."""

    def __init__(self, inner: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._inner, self._loop = inner, loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*args: Any, **named: Any) -> Any:
            result = found(*(getattr(each, "_inner", each) for each in args), **named)
            return self._dressed(self._run(result) if inspect.iscoroutine(result) else result)

        return call

    def __enter__(self) -> "Awaited":
        self._run(self._inner.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        self._run(self._inner.__aexit__(*error))

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                event = self._run(self._inner.__anext__())
            except StopAsyncIteration:
                return
            yield event

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Awaited) and self._inner == other._inner

    def __hash__(self) -> int:
        return hash(self._inner)

    def __repr__(self) -> str:
        return repr(self._inner)

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def _dressed(self, value: Any) -> Any:
        return Awaited(value, self._loop) if isinstance(value, DRESSED) else value


@contextmanager
def awaited(inner: Any) -> Iterator[Any]:
    """Opened, and closed at the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        with Awaited(inner, loop) as dressed:
            yield dressed
    finally:
        asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

"""Docstrings are written once, in the classes for threads."""

import inspect
from collections.abc import Callable
from typing import TypeVar

C = TypeVar("C", bound=type)


def documented_by(blocking: type) -> Callable[[C], C]:
    """Take the docstrings of the class for threads."""

    def document(face: C) -> C:
        for name, value in vars(face).items():
            if not name.startswith("_") and not value.__doc__:
                value.__doc__ = inspect.getdoc(getattr(blocking, name))
        return face

    return document

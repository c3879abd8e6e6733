"""A template for python-dbusmock: a logind that lets nobody forbid anything, as the real one does with most users."""

# mypy: ignore-errors
# It runs in the distribution's Python.

import dbus
import dbus.service
from dbusmock.templates import logind
from dbusmock.templates.logind import *  # noqa: F403 - the template is that one, but for a method


@dbus.service.method(logind.MAIN_IFACE, in_signature="ssss", out_signature="h")
def Inhibit(self, what, who, why, mode):
    if mode == "block":
        raise dbus.exceptions.DBusException("Permission denied", name="org.freedesktop.DBus.Error.AccessDenied")
    return logind.Inhibit(self, what, who, why, mode)

"""A template for python-dbusmock: a logind that knows who holds a lock, as the real one does."""

# mypy: ignore-errors
# It runs in the distribution's Python.

import os

import dbus
import dbus.service
from dbusmock import mockobject
from dbusmock.templates import logind
from dbusmock.templates.logind import *  # noqa: F403 - the template is that one, but for a method
from gi.repository import GLib

mockobject.inhibitors = []


@dbus.service.method(
    logind.MAIN_IFACE, in_signature="ssss", out_signature="h", sender_keyword="sender", connection_keyword="bus"
)
def Inhibit(self, what, who, why, mode, sender=None, bus=None):
    place = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
    pid = bus.call_blocking(*place, "GetConnectionUnixProcessID", "s", (sender,))
    lock = (what, who, why, mode, bus.get_unix_user(sender), pid)
    mockobject.inhibitors.append(lock)
    held, given = os.pipe()

    def dropped(descriptor, condition):
        os.close(descriptor)
        mockobject.inhibitors.remove(lock)
        return False

    GLib.unix_fd_add_full(GLib.PRIORITY_HIGH, held, GLib.IO_HUP, dropped)
    GLib.idle_add(os.close, given)
    return given

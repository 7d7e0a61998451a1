"""Einsum at the speed of the hardware, whose axes can be looked up through a table or slid over a window."""

import os as _os

from einfall._einfall import TableError, _cache_info, _forget_device, cache_clear, einsum

_os.register_at_fork(after_in_child=_forget_device) if hasattr(_os, "register_at_fork") else None

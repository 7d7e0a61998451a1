"""Tells ``torch.compile`` how to trace einfall, once it is there and not before.

``einsum`` and plans are compiled code, which torch's tracer does not look into; it has to be told of the operator behind
them. That takes ``torch._dynamo``, which takes a second to import, so it is done when somebody else imports it.
"""

from __future__ import annotations

import sys
import weakref
from _thread import allocate_lock
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Sequence

TRACER = "torch._dynamo"

# Plans that were made before the tracer was there.
_plans: weakref.WeakSet[Any] = weakref.WeakSet()
_registered = False
_lock = allocate_lock()


class _Loader:
    """The loader of the tracer, with one thing done after it."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _register()


class _Finder:
    """Finds the tracer as everybody does, and steps aside."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != TRACER:
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


def install() -> None:
    """Called once, when the package is imported."""
    if TRACER in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Finder())


def planned(plan: Any) -> None:
    """Called for each plan that is made."""
    with _lock:
        if not _registered:
            _plans.add(plan)
            return
    _trace(plan)


def _trace(plan: Any) -> None:
    # A call of it goes into the graph as it is; tracing that, torch finds the operator.
    sys.modules["torch"].compiler.allow_in_graph(plan)


def _register() -> None:
    global _registered
    from einfall import _attention_torch as attention
    from einfall import torch as ours

    ours._register_tracing()
    attention._register_tracing()
    with _lock:
        _registered = True
        waiting = list(_plans)
        _plans.clear()
    for plan in waiting:
        _trace(plan)

"""Drawings kept from one build to the next, each by all that went into it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path


def kept(folder: Path, suffix: str, inputs: object, draw: Callable[[], bytes]) -> bytes:
    """What `draw` returns, or returned when the same inputs, compared by `repr`, came before."""
    path = folder / f"{hashlib.sha256(repr(inputs).encode()).hexdigest()[:32]}{suffix}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # written apart, since two builds may run at once
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_bytes(draw())
        draft.replace(path)
    return path.read_bytes()

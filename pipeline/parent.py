"""Workers in processes of their own end when the process that started them is gone: Beam's do not by themselves."""

from __future__ import annotations

import os
import sys
import threading
import time

SECONDS = 0.5  # between two looks

_watching = threading.Lock()


def end_with_parent() -> None:
    """Ends this process soon after its parent, if it is one of Beam's workers; what is committed stays."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.name.endswith(".sdk_worker_main") and _watching.acquire(blocking=False):
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS)
    os._exit(1)

"""Workers in processes of their own end when the job that started them is gone.

Beam's do so by themselves once they talk to the job, and not always before. Their parent is no sign: Beam starts them
through a shell, which waits for them whatever becomes of the job. So the job tells its number.
"""

from __future__ import annotations

import os
import sys
import threading
import time

SECONDS = 0.5  # between two looks

VARIABLE = "BEAMCAM_JOB"
"""The number of the process that runs the job; its workers on this machine inherit it."""

_watching = threading.Lock()


def announce_job() -> None:
    """Tells the workers that this process will start whose they are."""
    os.environ[VARIABLE] = str(os.getpid())


def end_with_job() -> bool:
    """Ends this process soon after its job, if it is one of Beam's workers; what is committed stays.

    Returns:
        Whether it is one, on the job's own machine.
    """
    spec, job = getattr(sys.modules.get("__main__"), "__spec__", None), os.environ.get(VARIABLE, "")
    is_worker = spec is not None and spec.name.endswith(".sdk_worker_main") and job.isdecimal()
    if is_worker and _watching.acquire(blocking=False):
        threading.Thread(target=_watch, args=(int(job),), daemon=True).start()
    return is_worker


def _watch(job: int) -> None:
    while _is_running(job):
        time.sleep(SECONDS)
    os._exit(1)


def _is_running(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's, but it is
        pass
    return True

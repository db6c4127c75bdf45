"""Named places at which a test holds a process, to kill or freeze it from outside just there.

Active only where the environment variable `COHORT_FAULTS` names a folder. A process that comes to
`point("push.before_switch")` while `push.before_switch.hold` lies in that folder leaves
`push.before_switch.<pid>` there and waits until the former is gone.
"""

import os
import time
from pathlib import Path

VARIABLE = "COHORT_FAULTS"
_FOLDER = os.environ.get(VARIABLE, "")


def point(name: str) -> None:
    if not _FOLDER:
        return
    hold = Path(_FOLDER) / f"{name}.hold"
    if not hold.exists():
        return
    (Path(_FOLDER) / f"{name}.{os.getpid()}").touch()
    while hold.exists():
        time.sleep(0.01)

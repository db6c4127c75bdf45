"""The process in which verifiers run: `python -m rewards.child READ_FD WRITE_FD`.

One JSON line in per group, one JSON line out per completion. The pipes are its own, so a verifier
that prints disturbs nobody. It dies with its parent, whatever killed the parent.
"""

import ctypes
import json
import os
import resource
import signal
import sys

from rewards.score import Attempt, Rubric, find_verifier

PR_SET_PDEATHSIG = 1


def main(read_fd: int, write_fd: int, parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # the parent died before the line above could tie us to it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    with os.fdopen(read_fd) as requests, os.fdopen(write_fd, "w") as replies:

        def reply(value: dict) -> None:
            replies.write(json.dumps(value) + "\n")
            replies.flush()

        settings = json.loads(requests.readline())
        limit = int(settings["memory_gib"] * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        rubric = Rubric(
            weights=settings["weights"],
            truncated=settings["truncated"],
            overlong=tuple(settings["overlong"]),
        )
        try:
            for name in rubric.weights:
                find_verifier(name)
        except ValueError as error:
            reply({"error": str(error)})
            return
        reply({"ready": True})
        for line in requests:
            request = json.loads(line)
            for attempt in request["attempts"]:
                score = rubric.score(request["answer"], Attempt(**attempt))
                reply(
                    {
                        "reward": score.reward,
                        "parts": dict(score.parts),
                        "note": score.note,
                        "steps": score.steps,
                    }
                )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

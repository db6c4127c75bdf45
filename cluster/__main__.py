import contextlib
import os
import sys

from cluster.cli import main

if __name__ == "__main__":
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    # Everything is closed by now. An ordinary exit would go on for seventy lines about what triton,
    # which transformers imports, has leaked.
    os._exit(code)

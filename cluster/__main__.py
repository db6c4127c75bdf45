import contextlib
import os
import sys

from cluster.cli import main

if __name__ == "__main__":
    code = main()
    with contextlib.suppress(BrokenPipeError):  # nobody reads it any more
        sys.stdout.flush()
    # Everything is closed by now. An ordinary exit would go on for seventy lines about what triton,
    # which transformers imports, has leaked.
    os._exit(code)

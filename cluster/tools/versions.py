"""Which versions of what we stand on the tests ran with, and which are here."""

from importlib import metadata

TESTED = {
    "torch": "2.13.0",
    "vllm": "0.32.0",
    "transformers": "5.19",
    "ray": "2.60",
    "deepspeed": "0.19.8",
    "pyarrow": "26",
    "pydantic": "2",
    "math-verify": "0.9.0",
}
"""The versions that the tests ran with, as far as they are pinned."""


def version_of(package: str) -> str:
    """Empty when it is not installed. vLLM's CPU build is another package."""
    for name in (package, f"{package}-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""

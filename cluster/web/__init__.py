"""Run folders in a browser, or as one page: `python -m cluster view` and `report`. Reads files, and
starts nothing."""

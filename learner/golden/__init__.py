"""Numbers that the peers' own code computed, against ours: `python -m learner.golden FILE`.

Each file but `case.py` and `__main__.py` is one peer: how its options translate into our functions.
`variants.py` holds what a peer has and no row of ours does.
"""

"""Ratios measured in one run, interleaved: `python benchmarks/run.py [B3 ... | all]`.

One JSON line a ratio: name, what, ratio (median of pairs), interval (bootstrap, 90 %), target, ok.
Times on shared machines drift; a ratio of neighbours in time does not. `compare.py` holds the lines
against `baseline.jsonl`.
"""

import os
from collections.abc import Callable

import bench_learner
import bench_loop
import bench_overlap
import bench_peer
import bench_plan
import bench_sampler
from measure import ENV, chosen

BENCHMARKS: dict[str, Callable[[], None]] = {
    "B1": bench_overlap.b1,
    "B2": bench_loop.b2,
    "B3": bench_sampler.b3,
    "B4": bench_loop.b4,
    "B5": bench_sampler.b5,
    "B6": bench_sampler.b6,
    "B7": bench_learner.b7,
    "B8": bench_learner.b8,
    "B9": bench_learner.b9,
    "B11": bench_learner.b11,
    "B12": bench_loop.b12,
    "B13": bench_plan.b13,
    "B17": bench_peer.b17,
    "group_requests": bench_sampler.group_requests,
}


def main() -> int:
    names = chosen(BENCHMARKS)
    os.environ.update(ENV)
    for name in names:
        BENCHMARKS[name]()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

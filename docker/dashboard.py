"""Writes `docker/grafana/cohort.json`, a run's Grafana dashboard: `python docker/dashboard.py`.

A panel is a title, a unit and queries; each query has a legend. `tests/test_ray_job.py` asks each
of them of a real Prometheus that scrapes a real run.
"""

import json
from pathlib import Path

RUN = '{run=~"$run"}'
Query = tuple[str, str]
Panel = tuple[str, str, list[Query]]

ROWS: dict[str, list[Panel]] = {
    "Is it learning?": [
        ("Reward", "short", [(f"ray_cohort_reward_mean{RUN}", "{{run}}")]),
        ("Parts of the reward", "short", [(f"ray_cohort_reward_part{RUN}", "{{verifier}}")]),
        ("Held out", "short", [(f"ray_cohort_eval{RUN}", "{{figure}}")]),
        (
            "Groups that teach nothing",
            "percentunit",
            [
                (f"ray_cohort_rollout_uniform_groups{RUN}", "uniform"),
                (f"ray_cohort_rollout_all_zero_groups{RUN}", "all zero"),
                (f"ray_cohort_rollout_all_one_groups{RUN}", "all one"),
            ],
        ),
        (
            "Length",
            "short",
            [
                (f"ray_cohort_rollout_length{RUN}", "mean"),
                (f"ray_cohort_rollout_length_max{RUN}", "longest"),
            ],
        ),
        ("Cut at the limit", "percentunit", [(f"ray_cohort_rollout_truncated{RUN}", "{{run}}")]),
    ],
    "Is the update sound?": [
        ("Entropy per token", "short", [(f"ray_cohort_policy_entropy{RUN}", "{{run}}")]),
        (
            "Sampler against learner (KL)",
            "short",
            [(f"ray_cohort_policy_kl_behaviour{RUN}", "{{run}}")],
        ),
        (
            "Clipped tokens",
            "percentunit",
            [
                (f"ray_cohort_policy_clip_fraction_high{RUN}", "good ones, above"),
                (f"ray_cohort_policy_clip_fraction_low{RUN}", "bad ones, below"),
            ],
        ),
        ("Gradient norm", "short", [(f"ray_cohort_learner_grad_norm{RUN}", "{{run}}")]),
        (
            "Effective sample size",
            "percentunit",
            [(f"ray_cohort_policy_importance_ess{RUN}", "{{run}}")],
        ),
        (
            "Staleness: share of groups by age",
            "percentunit",
            [(f"ray_cohort_schedule_staleness_share{RUN}", "{{versions}} versions")],
        ),
    ],
    "Is it fast?": [
        ("Seconds of a step", "s", [(f"ray_cohort_time{RUN}", "{{phase}}")]),
        ("Idle share", "percentunit", [(f"ray_cohort_idle{RUN}", "{{role}}")]),
        (
            "Tokens per second",
            "short",
            [
                (f"ray_cohort_rollout_tokens_per_s{RUN}", "sampled"),
                (f"ray_cohort_learner_tokens_per_s{RUN}", "in the update"),
            ],
        ),
        ("Seconds per verifier", "s", [(f"ray_cohort_verifier_seconds{RUN}", "{{verifier}}")]),
        (
            "Outcomes per verifier",
            "short",
            [(f"ray_cohort_verifier_outcome{RUN}", "{{verifier}} {{outcome}}")],
        ),
        ("Pause of the samplers", "s", [(f"ray_cohort_weights_pause_seconds{RUN}", "{{run}}")]),
    ],
    "Is it well?": [
        ("Step", "short", [(f"ray_cohort_step{RUN}", "{{run}}")]),
        ("Samplers alive", "short", [(f"ray_cohort_faults_samplers_alive{RUN}", "{{run}}")]),
        (
            "Restarts",
            "short",
            [
                (f"ray_cohort_faults_sampler_restarts{RUN}", "samplers"),
                (f"ray_cohort_faults_learner_restarts{RUN}", "learner"),
            ],
        ),
        (
            "Completions by outcome",
            "short",
            [
                (f"ray_cohort_reward_verifier_errors{RUN}", "unscorable"),
                (f"ray_cohort_reward_timeouts{RUN}", "timeout"),
                (f"ray_cohort_reward_tampered{RUN}", "tampered"),
            ],
        ),
        ("Disk free", "decgbytes", [(f"ray_cohort_disk_free_gb{RUN}", "{{run}}")]),
    ],
}

SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT, ACROSS = 8, 7, 3


def dashboard() -> dict:
    panels, at = [], 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": at, "w": WIDTH * ACROSS, "h": 1}
        panels.append({"type": "row", "title": title, "gridPos": place, "collapsed": False})
        at += 1
        for number, (name, unit, queries) in enumerate(row):
            panels.append(
                {
                    "type": "timeseries",
                    "title": name,
                    "datasource": SOURCE,
                    "gridPos": {
                        "x": number % ACROSS * WIDTH,
                        "y": at + number // ACROSS * HEIGHT,
                        "w": WIDTH,
                        "h": HEIGHT,
                    },
                    "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
                    "targets": [
                        {"refId": chr(65 + n), "expr": expr, "legendFormat": legend}
                        for n, (expr, legend) in enumerate(queries)
                    ],
                }
            )
        at += HEIGHT * -(-len(row) // ACROSS)
    for number, panel in enumerate(panels, start=1):
        panel["id"] = number
    variable = {
        "name": "run",
        "type": "query",
        "datasource": SOURCE,
        "query": "label_values(ray_cohort_step, run)",
        "includeAll": True,
        "multi": True,
        "refresh": 2,
        "current": {"text": "All", "value": "$__all"},
    }
    return {
        "uid": "cohort",
        "title": "Cohort",
        "schemaVersion": 39,
        "time": {"from": "now-3h", "to": "now"},
        "refresh": "10s",
        "templating": {"list": [variable]},
        "panels": panels,
    }


if __name__ == "__main__":
    target = Path(__file__).parent / "grafana" / "cohort.json"
    target.write_text(json.dumps(dashboard(), indent=1) + "\n")
    print(f"wrote {target}")

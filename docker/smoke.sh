#!/bin/sh
# The smoke recipe on the cluster of compose.yaml, from nothing to a trained step; ends what it started.
set -eu
cd "$(dirname "$0")/.."
export RAY_TOKEN="${RAY_TOKEN:-$(openssl rand -hex 16)}"
trap 'docker compose -f docker/compose.yaml down --volumes' EXIT
docker compose -f docker/compose.yaml up --build --exit-code-from job

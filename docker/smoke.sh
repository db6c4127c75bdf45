#!/bin/sh
# The smoke recipe on the cluster of compose.yaml, from nothing to a trained step; ends what it started.
set -eu
cd "$(dirname "$0")/.."
[ -s docker/ray_token ] || { umask 077; openssl rand -hex 16 > docker/ray_token; }
trap 'docker compose -f docker/compose.yaml down --volumes' EXIT
docker compose -f docker/compose.yaml up --build --exit-code-from job

#!/bin/bash
# Submits N shards (default 10), 1 to N, and a last job that joins their tables when all have ended.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
shards=${1:-10}
array=$(sbatch --parsable --array="1-$shards" "$here/array.sbatch")
sbatch --dependency="afterany:${array%%;*}" --job-name=mitoscan-merge --mem=4G \
  --wrap "'${MITOSCAN:-mitoscan}' merge '${OUT:-results}'"

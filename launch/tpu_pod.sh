#!/usr/bin/env bash
# Runs one command on every host of a Cloud TPU slice: tpu_pod.sh NAME ZONE MODULE FLAGS...
#   bash launch/tpu_pod.sh my-slice us-east5-a launch.train \
#     --config=configs/starbucks_sts.py --workdir=/mnt/shared/runs/sts
# Copies the working tree with its uncommitted changes, installs the requirements, and
# runs the command; run it again to resume. All hosts must share the workdir's file
# system.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -lt 3 ]; then
  echo "error: tpu_pod.sh needs NAME ZONE MODULE and the module's flags" >&2
  exit 1
fi
name="$1" zone="$2"
shift 2
if ! command -v gcloud > /dev/null; then
  echo "error: gcloud, Google Cloud's command, is not on the PATH" >&2
  exit 1
fi

tree="$(mktemp -d)/embax.tar.gz"
trap 'rm -rf "$(dirname "$tree")"' EXIT
git ls-files -z --cached --others --exclude-standard | tar --null -czf "$tree" -T -
jax="$(sed -n 's/^jax==//p' requirements.txt)"
# The first host is the coordinator; JAX gets all else from the metadata server.
hosts="http://metadata.google.internal/computeMetadata/v1/instance/attributes"
first="curl -sf -H 'Metadata-Flavor: Google' $hosts/worker-network-endpoints"
first="$first | cut -d, -f1 | awk -F: '{print \$NF}'"
remote="set -euo pipefail; mkdir -p embax; tar -xzf embax.tar.gz -C embax; cd embax;
bash launch/setup.sh; .venv/bin/pip install --quiet 'jax[tpu]==$jax';
export JAX_COORDINATOR_ADDRESS=\"\$($first):8482\";
exec .venv/bin/python -m$(printf ' %q' "$@")"

gcloud compute tpus tpu-vm scp "$tree" "$name:" --zone="$zone" --worker=all
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$remote"

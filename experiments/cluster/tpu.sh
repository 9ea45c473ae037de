#!/usr/bin/env bash
# Train on all hosts of a Cloud TPU slice. Run it on your own machine:
#
#   TPU=my-slice ZONE=us-central2-b \
#     bash experiments/cluster/tpu.sh --algorithm=pr_sgd --period=4
#
# The arguments are flags of train.py. Before, install this project on all hosts
# in DIRECTORY, and mount a directory RUNS that they share. JAX finds the hosts of
# the slice by itself. After a failure, repeat the command: the run resumes.
set -eu

: "${TPU:?set TPU to the name of the slice}" "${ZONE:?set ZONE}"
directory=${DIRECTORY:-prsgd_jax}
runs=${RUNS:-/mnt/shared/runs}
name=${NAME:-tpu}

flags=$(printf ' %q' "$@")
# Expanded on the hosts, because only they have the directory.
resume='$([ -e "$workdir/config.json" ] && echo --resume)'
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
  workdir=$(printf %q "$runs/$name")
  cd $(printf %q "$directory") && .venv/bin/python experiments/train.py \
    --distributed=auto --workdir=\"\$workdir\" $flags $resume
"

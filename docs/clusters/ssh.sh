#!/bin/sh
# A Dask cluster over plain SSH: a scheduler here, one worker for each GPU of each host.
#   sh docs/clusters/ssh.sh HOST1 HOST2 ...          (GPUS=0 for machines without a GPU)
# then, with the address that it prints:
#   efficient-medsam2 precompute -c cluster --scheduler tcp://THIS_HOST:8786
# Hosts need this environment and the data under the same paths, and a key that asks no password.
set -eu
bin=$(dirname "$(command -v efficient-medsam2)")
here=$(hostname -f)
gpus=${GPUS:-1}
"$bin/dask" scheduler --port 8786 &
pids=$!
trap 'kill $pids 2>/dev/null' EXIT INT TERM
for host in "$@"; do
  if [ "$gpus" -eq 0 ]; then
    ssh -tt "$host" "$bin/dask" worker "tcp://$here:8786" --nthreads 1 --memory-limit 0 &
    pids="$pids $!"
  else
    gpu=0
    while [ "$gpu" -lt "$gpus" ]; do
      ssh -tt "$host" env CUDA_VISIBLE_DEVICES=$gpu "$bin/dask" worker "tcp://$here:8786" \
        --nthreads 1 --memory-limit 0 --resources GPU=1 &
      pids="$pids $!"
      gpu=$((gpu + 1))
    done
  fi
done
echo "--scheduler tcp://$here:8786   dashboard: http://$here:8787/status"
wait

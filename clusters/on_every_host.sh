#!/bin/bash
# torchrun on every host of $HOSTS at once, by ssh and without a shared disk; the first of them is this one.
# The others first get this folder as it is here, but for their own .venv. What they write stays with them.
set -eu
read -r -a hosts <<< "$HOSTS"
words=$(printf "%q " "PATH=$PATH" "DVC_STAGE=${DVC_STAGE:-}" "OMP_NUM_THREADS=$OMP_NUM_THREADS" torchrun \
    --nnodes "${#hosts[@]}" --nproc-per-node "$TMV_PROCESSES" --local-ranks-filter 0 --master-addr "${hosts[0]}" "$@")
for host in "${hosts[@]:1}"; do
    rsync --archive --delete --exclude .git --exclude .dvc --exclude .venv ./ "$host:$PWD"
done
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
for k in "${!hosts[@]}"; do
    if [ "$k" = 0 ]; then continue; fi
    ssh -n "${hosts[k]}" "cd $(printf "%q" "$PWD") && PET_NODE_RANK=$k $words" &
done
eval "PET_NODE_RANK=0 $words"
for _ in "${hosts[@]:1}"; do wait -n; done

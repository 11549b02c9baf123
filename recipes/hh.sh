#!/usr/bin/env bash
# Preference pairs of dialogues → a supervised start, a reward model, RAFT. Everything lands in runs/hh.
#   bash recipes/hh.sh hh.jsonl.gz      (.jsonl, .parquet or a Hub dataset with the columns `chosen` and `rejected`)
set -euo pipefail
pairs=${1:?a file or Hub dataset with the columns chosen and rejected}
cd "$(dirname "$0")/.."
bin=${BIN:-.venv/bin}
done_with() { [ -e "$1/raftune.json" ]; }  # what is finished is not trained again

[ -e runs/hh/dialogues.jsonl ] || $bin/python recipes/hh.py "$pairs" runs/hh
done_with runs/hh/sft || $bin/raftune sft --policy asset:smollm2-135m-instruct --data runs/hh/demonstrations.jsonl \
  --max-tokens 512 --out runs/hh/sft
done_with runs/hh/reward || $bin/raftune reward-model --model asset:all-minilm-l6-v2 --data runs/hh/pairs.jsonl \
  --learning-rate 1e-4 --epochs 2 --max-tokens 512 --out runs/hh/reward
$bin/raftune run recipes/hh.yaml --out runs/hh/raft

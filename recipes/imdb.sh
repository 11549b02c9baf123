#!/usr/bin/env bash
# Labelled reviews → a supervised start, a reward model, an independent judge, RAFT. Everything lands in runs/imdb.
#   bash recipes/imdb.sh reviews.jsonl.gz      (.jsonl, .parquet or a Hub dataset with the columns `text` and `label`)
set -euo pipefail
reviews=${1:?a file or Hub dataset with the columns text and label}
cd "$(dirname "$0")/.."
bin=${BIN:-.venv/bin}
done_with() { [ -e "$1/raftune.json" ]; }  # what is finished is not trained again

[ -e runs/imdb/openings.jsonl ] || $bin/python recipes/imdb.py "$reviews" runs/imdb
done_with runs/imdb/sft || $bin/raftune sft --policy asset:smollm2-135m-instruct --data runs/imdb/demonstrations.jsonl \
  --max-tokens 128 --out runs/imdb/sft
train() {
  done_with "runs/imdb/$1" || $bin/raftune reward-model --model asset:all-minilm-l6-v2 --data "runs/imdb/$1.jsonl" \
    --learning-rate 1e-4 --max-tokens 160 --seed "$2" --out "runs/imdb/$1"
}
train reward 0
train monitor 1
$bin/raftune run recipes/imdb.yaml --out runs/imdb/raft

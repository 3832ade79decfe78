#!/usr/bin/env bash
# The whole loop: from a network to a release that every pull request is held against.
set -euo pipefail

cat > device.toml <<'TOML'
name = "my device"
[runtime]
provider = "CPUExecutionProvider"       # runner = "ssh", host = "pi@raspberrypi.local" for a board
threads = 1
[budgets]
max_size = "600 kB"
max_macs_ratio = 0.5
max_accuracy_drop = "3 pp"
TOML
edgeprune doctor                                           # what this machine can do, and how noisy it is
edgeprune run --model resnet20 --data digits --recipe quick --scheme magnitude \
    --max-macs-ratio 0.4 --target device.toml --out runs/r20
edgeprune gate runs/r20 --why                              # where bytes, multiply-adds and milliseconds sit
edgeprune release runs/r20 --out release.json              # refuses what does not pass
mkdir -p models && cp runs/r20/{dense,slim}.onnx{,.json} runs/r20/measurement.json models/
git add models device.toml release.json && git commit -qm "resnet20 at 0.4 of its multiply-adds"
# In continuous integration, and before each commit:
edgeprune gate models/measurement.json --target device.toml --artifact models/slim.onnx --why
edgeprune compare release.json models/measurement.json     # what has moved beyond noise since

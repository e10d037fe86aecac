#!/usr/bin/env bash
# Checks the example against the schema of the API of Kubernetes, strictly (an unknown field is an error), with kubernetes-validate from
# PyPI, which carries the schemas. It does not show that a cluster would run them.
set -euo pipefail
cd "$(dirname "$0")"
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet 'kubernetes-validate==1.37.0'
"$place/venv/bin/kubernetes-validate" --strict etcd.yaml cluster.yaml

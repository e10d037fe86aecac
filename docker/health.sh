#!/usr/bin/env bash
# HEALTHCHECK, by REST: does the arbiter live and turn? Whether clients belong here is another question (/primary, /replica, /readiness),
# asked by HAProxy and Kubernetes: a program that ends unhealthy containers (Swarm does) must not end one that clones or waits for etcd.
# TENURE_HEALTH_URL for a REST that listens elsewhere or wants a client's certificate.
set -u
listen=${TENURE_RESTAPI_LISTEN:-${PATRONI_RESTAPI_LISTEN:-0.0.0.0:8008}}
get() { curl --silent --fail --output /dev/null --max-time 2 --noproxy '*' "$@"; }
if [ -n "${TENURE_HEALTH_URL:-}" ]; then get --insecure "$TENURE_HEALTH_URL"; exit; fi
get "http://127.0.0.1:${listen##*:}/liveness" || get --insecure "https://127.0.0.1:${listen##*:}/liveness"

# What the scripts here share; to be sourced.
# shellcheck shell=bash
say() { printf 'images: %s\n' "$*"; }
fail() { printf 'images: %s\n' "$*" >&2; exit 1; }

export DOCKER_BUILDKIT=1
# A docker that builds by BuildKit: a client from 23 on needs its part `buildx` for that, one before has it built in.
find_docker() {
  local docker major
  for docker in ${DOCKER:-docker /usr/bin/docker}; do
    command -v "$docker" >/dev/null || continue
    major=$("$docker" version --format '{{.Client.Version}}' 2>/dev/null | cut -d. -f1) || true
    if "$docker" buildx version >/dev/null 2>&1 || [ "${major:-99}" -lt 23 ]; then DOCKER=$docker; break; fi
    major=
  done
  [ -n "${major:-}" ] || fail "no docker with BuildKit here; hint: install docker and its part buildx (Debian 12: apt-get install docker.io docker-compose)"
  "$DOCKER" info >/dev/null 2>&1 || fail "docker's daemon does not answer $(id -un); hint: start it (systemctl start docker, or dockerd), and be in the group docker"
  export DOCKER
}

# Compose, as a part of docker or by itself.
find_compose() {
  if "$DOCKER" compose version >/dev/null 2>&1; then COMPOSE=("$DOCKER" compose)
  elif command -v docker-compose >/dev/null; then COMPOSE=(docker-compose)
  else fail "docker compose is missing; hint: install docker's part compose (Debian 12: apt-get install docker-compose)"; fi
}

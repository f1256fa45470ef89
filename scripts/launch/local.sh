#!/usr/bin/env bash
# Starts N processes of one run on this host, over loopback: to try a pod's code path on a CPU, or for one process per
# GPU.
#
#   scripts/launch/local.sh 2 -- jax-rele run configs/demo.yaml
#   JAX_NUM_CPU_DEVICES=4 scripts/launch/local.sh 2 -- jax-rele run configs/demo.yaml       2 processes of 4 CPU devices
#   JAX_PLATFORMS=cuda scripts/launch/local.sh 8 -- jax-rele run CONFIG.yaml               8 processes of one GPU each
#
# Every line of output begins with the number of its process. When one process fails the others have GRACE seconds
# (20) to end by themselves, then they are killed. Exits with the highest status of those that ended by themselves.
#
#   JAX_PLATFORMS          cpu unless set; on anything else process I gets device I alone
#   JAX_COORDINATOR_PORT   a free port unless set
set -euo pipefail

die() {
  echo "local.sh: $*" >&2
  exit 2
}

[[ $# -ge 3 && $2 == -- ]] || die "usage: local.sh N -- COMMAND..."
count=$1
shift 2
[[ $count =~ ^[1-9][0-9]*$ ]] || die "N is '$count'; it must be a number of processes"
[[ ${GRACE:=20} =~ ^[0-9]+$ ]] || die "GRACE is '$GRACE'; it must be a number of seconds"
command -v "$1" >/dev/null || die "no such command: $1"

# A port of the upper range that nobody listens on.
port=${JAX_COORDINATOR_PORT:-}
while [[ -z $port ]] || { [[ -z ${JAX_COORDINATOR_PORT:-} ]] && (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }; do
  port=$((RANDOM % 16384 + 49152))
done

export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$count JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
unset JAX_RELE_DISTRIBUTED

# Goes on when its process is told to end, to write what that says last.
label() {
  (trap '' INT TERM && exec sed -u "s/^/[$1] /")
}

start() {
  export JAX_PROCESS_ID=$1
  [[ $JAX_PLATFORMS == cpu ]] || export JAX_LOCAL_DEVICE_IDS=$1
  trap : INT TERM # wait for the command, however long it takes to end
  exec 4>&2 2>/dev/null # the shell's own words about killed commands
  {
    trap : INT TERM
    "${@:2}" 2>&1 1>&3 3>&- 4>&- </dev/null | label "$1" >&4 3>&-
  } 3>&1 | label "$1"
}

signal() {
  local pid
  for pid in "${pids[@]}"; do kill "-$1" -- "-$pid" 2>/dev/null || true; done
}

end_the_others() {
  sleep "$GRACE"
  signal TERM
  sleep 5
  signal KILL
}

pids=()
set -m # each process leads a group, so that it is ended with all that it has started
for ((process = 0; process < count; process++)); do
  start "$process" "$@" &
  pids+=("$!")
done
trap 'signal INT' INT
trap 'signal TERM' TERM

worst=0
first_failure=
running=("${pids[@]}")
while ((${#running[@]})); do
  sleep 0.1
  for place in "${!running[@]}"; do
    if kill -0 "${running[place]}" 2>/dev/null; then continue; fi
    status=0
    wait "${running[place]}" 2>/dev/null || status=$?
    unset "running[$place]"
    # Those that were killed below have no status of their own.
    if ((status > worst)) && { [[ -z $first_failure ]] || ((SECONDS - first_failure < GRACE)); }; then worst=$status; fi
    if ((status)) && [[ -z $first_failure ]]; then
      first_failure=$SECONDS
      end_the_others &
      killer=$!
    fi
  done
done
[[ -z $first_failure ]] || {
  kill -- "-$killer"
  wait "$killer"
} 2>/dev/null || true
exit "$worst"

#!/usr/bin/env bash
# Starts one jax-rele command on a TPU slice of a GKE cluster that has the JobSet controller (jobset.sigs.k8s.io).
#
#   NAME=run1 IMAGE=.../jax-rele:1 CLAIM=filestore ACCELERATOR=tpu-v5-lite-podslice TOPOLOGY=4x4 HOSTS=4 CHIPS=4 \
#     scripts/launch/gke.sh run CONFIG.yaml
#
# Follow it by `kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=run1`, end it by `kubectl delete jobset run1`.
#
#   NAME          of the JobSet
#   IMAGE         container image with jax_rele[tpu] installed; `jax-rele` is on its path
#   CLAIM         PersistentVolumeClaim that all hosts mount at /shared, read-write for many (Filestore, say).
#                 The command runs there, so relative paths of the config, run_root among them, begin there
#   ACCELERATOR   of the node pool: tpu-v5-lite-podslice (v5e), tpu-v5p-slice, tpu-v6e-slice
#   TOPOLOGY      of the slice, such as 4x4
#   HOSTS         how many hosts the slice has
#   CHIPS         how many chips a host has; HOSTS x CHIPS are those of TOPOLOGY
#   RESTARTS      how often a failed run starts again: 3 unless set
#   KUBECTL       what receives the filled-in file: `kubectl apply -f -` unless set; `cat` shows it
set -euo pipefail

die() {
  echo "gke.sh: $*" >&2
  exit 2
}

(($#)) || die "usage: NAME=... IMAGE=... CLAIM=... ACCELERATOR=... TOPOLOGY=... HOSTS=... CHIPS=... gke.sh run CONFIG.yaml"
for variable in NAME IMAGE CLAIM ACCELERATOR TOPOLOGY; do
  [[ ${!variable:-} ]] || die "$variable is not set; the header of this file says what it means"
  [[ ${!variable} =~ ^[A-Za-z0-9./:@_-]+$ ]] || die "$variable is '${!variable}'; it has letters, digits and ./:@_- alone"
done
: "${RESTARTS:=3}"
for variable in HOSTS CHIPS RESTARTS; do
  [[ ${!variable:-} =~ ^[0-9]+$ ]] || die "$variable is '${!variable:-}'; it must be a whole number"
done
[[ $TOPOLOGY =~ ^[0-9]+(x[0-9]+)+$ ]] || die "TOPOLOGY is '$TOPOLOGY'; it looks like 4x4 or 2x2x4"
((HOSTS * CHIPS == ${TOPOLOGY//x/*})) || die "HOSTS $HOSTS x CHIPS $CHIPS are not the chips of TOPOLOGY $TOPOLOGY"

# The arguments as a YAML list of double-quoted strings.
list=
for argument in "$@"; do
  [[ $argument != *[[:cntrl:]]* ]] || die "an argument has a line break or another control character"
  argument=${argument//\\/\\\\}
  # shellcheck disable=SC2016 # Kubernetes would put a variable's value there
  argument=${argument//'$('/'$$('}
  list+=", \"${argument//\"/\\\"}\""
done
# shellcheck disable=SC2034 # read by its name below
ARGUMENTS="[${list#, }]"

filled=$(<"$(dirname "${BASH_SOURCE[0]}")/gke_jobset.yaml")
for variable in NAME IMAGE CLAIM ACCELERATOR TOPOLOGY HOSTS CHIPS RESTARTS ARGUMENTS; do
  filled=${filled//"\${$variable}"/"${!variable}"}
done
if [[ ${KUBECTL:-} ]]; then
  $KUBECTL <<<"$filled"
else
  command -v kubectl >/dev/null || die "kubectl is not installed; install it, or set KUBECTL=cat to see the file"
  kubectl apply -f - <<<"$filled"
fi

#!/usr/bin/env bash
# Runs one jax-rele command on every host of a TPU VM slice, over gcloud's ssh.
#
#   TPU_NAME=pod ZONE=us-west4-a FOLDER=/mnt/shared/jax_rele scripts/launch/tpu_vm.sh run CONFIG.yaml
#
# Exits with gcloud's status. Start it again to go on where a run was interrupted. To end gcloud does not end the run;
# `gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='pkill -INT jax-rele'` does.
#
#   TPU_NAME   name of the TPU VM
#   ZONE       its zone
#   FOLDER     folder to run in: the checkout, on a file system that all hosts share (Filestore, another NFS, Lustre).
#              Relative paths of the config, run_root among them, begin there
#   PROJECT    Google Cloud project; gcloud's own default unless set
#   JAX_RELE   the program, as the hosts call it: .venv/bin/jax-rele unless set. Installed with the extra `tpu`
set -euo pipefail

die() {
  echo "tpu_vm.sh: $*" >&2
  exit 2
}

(($#)) || die "usage: TPU_NAME=... ZONE=... FOLDER=... tpu_vm.sh run CONFIG.yaml [--path.to.field VALUE ...]"
[[ ${TPU_NAME:-} ]] || die "TPU_NAME is not set; give the name of the TPU VM"
[[ ${ZONE:-} ]] || die "ZONE is not set; give the zone of the TPU VM, such as us-west4-a"
[[ ${FOLDER:-} == /* ]] || die "FOLDER is '${FOLDER:-}'; give the absolute path of a folder that all hosts share"
command -v gcloud >/dev/null || die "gcloud is not installed; get it from the Google Cloud SDK"

# JAX finds the other hosts by the TPU's metadata.
printf -v command 'cd %q && JAX_RELE_DISTRIBUTED=1 exec %q' "$FOLDER" "${JAX_RELE:-.venv/bin/jax-rele}"
printf -v arguments ' %q' "$@"
exec gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"} --worker=all \
  --command="$command$arguments"

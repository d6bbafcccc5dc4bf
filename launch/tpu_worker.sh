#!/usr/bin/env bash
# What launch/tpu_vm.sh does on each worker of a pod, where the checkout lies in ~/clip_jax.
#
#   tpu_worker.sh install [BUCKET]         the environment; the bucket at /mnt/BUCKET
#   tpu_worker.sh start RESTARTS FLAGS...  under launch/local.sh, whatever becomes of this shell
#   tpu_worker.sh stop                     SIGTERM, and wait for the end
#   tpu_worker.sh progress                 "clip_jax: " and running, none or the exit code
#
# ~/clip_jax.pid is what was started last, ~/clip_jax.code its exit code once it has ended. The shell
# that writes the code, and all that it starts, hold a lock on ~/clip_jax.lock: what was started runs
# as long as that lock is held and there is no code. A reboot releases it.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[[ $# -gt 0 && $1 != -* ]] || { usage && exit; }
cd "$(dirname "${BASH_SOURCE[0]}")/.."
pid_file=~/clip_jax.pid code_file=~/clip_jax.code log_file=~/clip_jax.log
lock_file=~/clip_jax.lock

install() {
  export PATH="$HOME/.local/bin:$PATH"
  # it brings a Python of its own: that of the TPU images is too old
  command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  uv venv --quiet --allow-existing --python 3.13 .venv
  uv pip install --quiet --python .venv/bin/python -e '.[tpu,remote]'
}

mount_bucket() {
  local key=/usr/share/keyrings/cloud.google.asc
  if ! command -v gcsfuse > /dev/null; then
    curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" > /dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
    sudo apt-get update -qq
    sudo apt-get install -yqq gcsfuse
  fi
  if ! mountpoint -q "/mnt/$1"; then
    sudo mkdir -p "/mnt/$1"
    sudo chown "$(id -un)" "/mnt/$1"
    # hosts must see each other's files at once, and a checkpoint takes its name by renaming a folder
    gcsfuse --implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0 \
      --metadata-cache-negative-ttl-secs=0 "$1" "/mnt/$1"
  fi
}

running() {
  [[ ! -s $code_file && -e $lock_file ]] && ! flock --shared --nonblock "$lock_file" true
}

start() {
  ! running || fail "clip_jax runs already: launch/tpu_vm.sh stop NAME ends it"
  exec 9>> "$lock_file"
  # a look at the progress holds the lock for a moment
  flock --timeout 5 9 || fail "processes of the last run are left: 'pkill -f clip_jax.main' ends them"
  rm -f "$pid_file" "$code_file"
  export PATH="$PWD/.venv/bin:$PATH"
  trap '' HUP
  {
    launch/local.sh 1 --restarts "$1" -- "${@:2}" &
    echo $! > "$pid_file"
    code=0
    wait $! || code=$?
    echo "$code" > "$code_file.new"
    mv "$code_file.new" "$code_file" # at once: a look must not find it empty
  } >> "$log_file" 2>&1 < /dev/null &
  until [[ -s $pid_file ]]; do sleep 0.1; done
}

progress() {
  if running; then
    echo "clip_jax: running"
  elif [[ -s $code_file ]]; then # also where it ended while we looked
    echo "clip_jax: $(< "$code_file")"
  else
    echo "clip_jax: none"
  fi
}

case $1 in
  install)
    install
    [[ ! ${2-} ]] || mount_bucket "$2"
    ;;
  start) start "${@:2}" ;;
  stop)
    if running; then
      pid=$(< "$pid_file")
      kill -TERM "$pid" 2> /dev/null || exit 0 # it has just ended
      tail --pid="$pid" -f /dev/null
    fi
    ;;
  progress) progress ;;
  *) fail "unknown $1; see $0 --help" ;;
esac

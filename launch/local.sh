#!/usr/bin/env bash
# Starts N processes of the training command on this machine, as N hosts would.
#
#   launch/local.sh N [options] -- FLAGS
#   launch/local.sh 2 --devices 4 -- --config configs/quickstart.py --workdir runs/two
#
# FLAGS are those of python -m clip_jax.main; a first word without a dash begins another command.
# Process 0 writes to the terminal as if it were alone; a line of process I begins with [I].
# When one fails the others are ended. Ctrl-C and SIGTERM are passed on to all, which save and
# stop; the third kills. The same command resumes.
#
#   --devices D    pretend D CPU devices in each process
#   --restarts K   start again after a failure, at most K times (default 0); what is wrong with
#                  the flags (exit code 2) no restart mends
#   --pause S      seconds before a restart (default 10)
#   --grace S      seconds that the others get to end once one has failed (default 30)
#   --dry-run      print the commands, start nothing
#
# Exit code: 0, that of the first process that failed, or 128 + the number of the signal that
# stopped the run. N = 1 names no coordinator: so the launchers of clusters use it on each host.
# One process drives all GPUs of a machine: there, too, N is 1.
# PYTHON=... names the interpreter (default: python).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

n='' devices='' restarts=0 pause=10 grace=30 dry_run=''
while (($#)); do
  [[ $1 != --*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}"
  case $1 in
    -h | --help) usage && exit ;;
    --dry-run) dry_run=1 && shift ;;
    --devices | --restarts | --pause | --grace)
      needs_value "$@"
      [[ $1 != --devices || $2 != 0 ]] || fail "--devices 0: at least one is needed"
      whole_number "$1" "$2" 0
      printf -v "${1#--}" %d "$((10#$2))"
      shift 2
      ;;
    --) shift && break ;;
    -*) fail "unknown option $1; see $0 --help" ;;
    *)
      [[ ! $n ]] || fail "unexpected $1: the training command's flags follow --"
      n=$1 && shift
      ;;
  esac
done
[[ $n ]] || fail "how many processes? launch/local.sh 2 -- --config configs/quickstart.py"
whole_number N "$n" 1
n=$((10#$n))
training_command "$@"
needs_tool "${command[0]}" "activate its environment, or name it by PYTHON=..."

free_port() {
  "${PYTHON:-python}" -c '
import socket
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    print(s.getsockname()[1])'
}

# What process I of an attempt at $port is told.
environment_of() {
  environment=(PYTHONUNBUFFERED=1)
  ((n == 1)) || environment+=(
    JAX_COORDINATOR_ADDRESS="127.0.0.1:$port" JAX_COORDINATOR_BIND_ADDRESS="127.0.0.1:$port"
    JAX_NUM_PROCESSES="$n" JAX_PROCESS_ID="$1"
  )
  [[ ! $devices ]] || environment+=(
    JAX_PLATFORMS=cpu
    XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
  )
}

# Each process leads a group of its own: Ctrl-C reaches this script alone, and none of what a
# process started outlives it.
start() {
  local i pipe
  port=0
  ((n == 1)) || port=$(free_port)
  pids=() groups=() told=() readers=()
  for ((i = 0; i < n; i++)); do
    environment_of "$i"
    set -m
    if ((i == 0)); then
      env "${environment[@]}" "${command[@]}" < /dev/null {guard}>&- &
    else
      exec {pipe}> >(trap '' INT TERM HUP && exec sed -u "s/^/[$i] /" >&2 {guard}>&-)
      readers+=($!)
      env "${environment[@]}" "${command[@]}" < /dev/null >&"$pipe" 2>&1 {pipe}>&- {guard}>&- &
      exec {pipe}>&-
    fi
    pids[i]=$! groups[i]=$! told[i]=0
    set +m
    echo "${groups[@]}" >&"$guard"
  done
}

end_all() {
  local pid
  for pid in "${pids[@]}"; do kill -TERM "$pid" || :; done
}

kill_groups() {
  local group
  for group in "${groups[@]}"; do kill -KILL -- "-$group" 2> /dev/null || :; done
}

# Waits for all processes and leaves the exit code of the attempt in $code. Speaks on 3: on 2 the
# shell would report each process that was killed.
supervise() {
  local i ended heard deadline=0
  code=0
  while ((${#pids[@]})); do
    for i in "${!pids[@]}"; do
      if kill -0 "${pids[i]}"; then
        heard=$signals # read once: a trap may run between any two of these lines
        ((told[i] == heard)) || kill -s "$signal" "${pids[i]}" || :
        told[i]=$heard
        continue
      fi
      ended=0
      wait "${pids[i]}" || ended=$?
      unset "pids[i]"
      ((ended)) || continue
      if ((!deadline)); then
        say "process $i ended with exit code $ended" 2>&3
        [[ $signal ]] || end_all
        deadline=$((SECONDS + grace))
      fi
      ((code && ended != 2)) || code=$ended
    done
    if ((signals > 2 || (deadline && SECONDS >= deadline))); then kill_groups; fi
    sleep 0.2 || : # Ctrl-C ends it
  done
  kill_groups
  echo >&"$guard"
  ((!${#readers[@]})) || wait "${readers[@]}" || :
}

if [[ $dry_run ]]; then
  port=0
  ((n == 1)) || port=$(free_port)
  for ((i = 0; i < n; i++)); do
    environment_of "$i"
    quoted env "${environment[@]}" "${command[@]}"
  done
  exit
fi

# Even if this script is killed: its end of the pipe is closed then.
exec {guard}> >(
  trap '' INT TERM HUP
  groups=()
  while read -ra line; do groups=("${line[@]}"); done
  kill_groups
)
signal='' signals=0
trap 'signal=INT signals=$((signals + 1))' INT
trap 'signal=TERM signals=$((signals + 1))' TERM HUP

for ((try = 0; ; try++)); do
  start
  supervise 3>&2 2> /dev/null
  if [[ $signal ]] || ((code == 0 || code == 2 || try == restarts)); then break; fi
  say "starting again in $pause s (restart $((try + 1)) of $restarts)"
  for ((tenths = 0; tenths < 10 * pause; tenths++)); do
    [[ ! $signal ]] || break 2
    sleep 0.1 || :
  done
done
if [[ $signal ]]; then
  say "stopped by SIG$signal: the same command goes on"
  ((code)) || code=$((128 + $(kill -l "$signal")))
fi
exit "$code"

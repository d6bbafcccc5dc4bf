#!/usr/bin/env bash
# Trains on a TPU VM pod: every worker runs the same command, under launch/local.sh.
#
#   launch/tpu_vm.sh ACTION NAME [options] [-- FLAGS]
#   launch/tpu_vm.sh train clip --zone us-west4-a --type v5litepod-256 --spot \
#       -- --config configs/vit_b16.py --workdir gs://my-bucket/vit_b16 \
#       --config.data.train='gs://my-bucket/pairs/{00000..41407}.tar'
#
# Actions:
#   train     all of it: create the pod where there is none, install, start, and look after it: one
#             that was preempted is created anew and the same command started. Ends with the
#             training. May itself be ended and started again; the pod goes on.
#   create    ask for the pod and wait until it is there
#   install   copy this checkout to every worker and install it; mount --bucket
#   start     start FLAGS on every worker; they go on when this terminal is closed
#   log       follow the log of a worker
#   stop      SIGTERM to every worker, which save; returns when they have ended
#   status    what the pod and its workers do
#   delete    give the pod back
#
# FLAGS are those of python -m clip_jax.main; a first word without a dash begins another command.
# All workers must see the same workdir: gs://BUCKET/FOLDER, or a folder of a disk that you mounted.
#
#   --type TYPE        v4-32, v5litepod-16, v5p-32, v6e-16, ...
#   --runtime VERSION  of the TPU software (default: by the type)
#   --spot             cheaper, and taken away when others pay more
#   --bucket BUCKET    mount it at /mnt/BUCKET on every worker, for programs that need files
#   --zone, --project  (default: those of gcloud config)
#   --create=OPTION    one more option of gcloud compute tpus queued-resources create, such as
#                      --create=--reserved; may be repeated
#   --restarts K       after failures, on each worker (default 3); what is wrong with the flags
#                      (exit code 2) no restart mends
#   --worker I         whose log (default 0)
#   --every S          seconds between two looks at the pod (default 60)
#   --dry-run          print the commands, run nothing
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

actions='train create install start log stop status delete'
action='' name='' type='' runtime='' spot='' bucket='' zone='' project='' restarts=3 worker=0
every=60 dry_run='' create=()
while (($#)); do
  [[ $1 != --*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}"
  case $1 in
    -h | --help) usage && exit ;;
    --dry-run) dry_run=1 && shift ;;
    --spot) spot=1 && shift ;;
    --restarts | --worker | --every)
      needs_value "$@"
      whole_number "$1" "$2" 0
      printf -v "${1#--}" %d "$((10#$2))"
      shift 2
      ;;
    --type | --runtime | --bucket | --zone | --project)
      needs_value "$@"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --create) needs_value "$@" && create+=("$2") && shift 2 ;;
    --) shift && break ;;
    -*) fail "unknown option $1; see $0 --help" ;;
    *)
      if [[ ! $action ]]; then
        action=$1
      elif [[ ! $name ]]; then
        name=$1
      else
        fail "unexpected $1: the training command's flags follow --"
      fi
      shift
      ;;
  esac
done
[[ $action && " $actions " == *" $action "* ]] || fail "unknown action '$action': one of $actions"
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
  fail "the pod's name '$name': lower-case letters, digits and dashes, a letter first"
check_bucket "$bucket"
if [[ $action == train || $action == create ]]; then
  case $type in
    '') fail "--type is missing, such as --type v5litepod-16" ;;
    v6e-*) : "${runtime:=v2-alpha-tpuv6e}" ;;
    v5p-*) : "${runtime:=v2-alpha-tpuv5}" ;;
    v5litepod-*) : "${runtime:=v2-alpha-tpuv5-lite}" ;;
    v[234]-*) : "${runtime:=tpu-ubuntu2204-base}" ;;
    *)
      [[ $runtime ]] ||
        fail "--type $type: give its --runtime too, it is none of v4-N, v5litepod-N, v5p-N, v6e-N"
      ;;
  esac
fi
if [[ $action == train || $action == start ]]; then
  check_words "$@"
elif (($#)); then
  fail "$action takes no flags of the training command"
fi
[[ $dry_run ]] || needs_tool gcloud "see https://cloud.google.com/sdk/docs/install"

where=(${zone:+"--zone=$zone"} ${project:+"--project=$project"})
queued() { run gcloud compute tpus queued-resources "$@" ${where[@]+"${where[@]}"}; }
on_worker() { # worker script
  run gcloud compute tpus tpu-vm ssh "$name" "--worker=$1" "--command=$2" ${where[@]+"${where[@]}"}
}

on_workers() { # what launch/tpu_worker.sh is asked to do
  on_worker all "$(quoted clip_jax/launch/tpu_worker.sh "$@")"
}

# What the API calls it, ABSENT, or UNKNOWN where gcloud gave no answer.
state() {
  local answer
  answer=$(queued list "--filter=name~(^|/)$name\$" '--format=value(state.state)') || answer=UNKNOWN
  echo "${answer:-ABSENT}"
}

create() {
  queued create "$name" "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime" \
    ${spot:+--spot} ${create[@]+"${create[@]}"}
}

delete() { queued delete "$name" --force --quiet; }

wait_until_active() {
  local now
  while now=$(state) && [[ $now != ACTIVE ]]; do
    case $now in
      FAILED | SUSPENDED)
        fail "$name is $now: launch/tpu_vm.sh delete $name, then create it again"
        ;;
    esac
    say "$name is $now"
    sleep "$every"
  done
}

install() {
  local tar=${TMPDIR:-/tmp}/clip_jax_$name.tar.gz
  run tar -czf "$tar" --exclude='./.*' --exclude=./runs --exclude=__pycache__ \
    -C "$(dirname "${BASH_SOURCE[0]}")/.." . &&
    run gcloud compute tpus tpu-vm scp "$tar" "$name:clip_jax.tar.gz" --worker=all \
      ${where[@]+"${where[@]}"} &&
    run rm "$tar" &&
    on_worker all 'mkdir -p clip_jax && tar -xzf clip_jax.tar.gz -C clip_jax' &&
    on_workers install ${bucket:+"$bucket"}
}

start() { on_workers start "$restarts" "$@"; }

progress_of_each() {
  on_worker all 'clip_jax/launch/tpu_worker.sh progress || echo "clip_jax: none"'
}

# What the workers do together: running, none, an exit code, or UNKNOWN where one gave no answer.
progress() {
  local lines
  lines=$(progress_of_each 2> /dev/null | sed -n 's/^clip_jax: //p') || lines=UNKNOWN
  case $'\n'$lines$'\n' in
    *$'\n'running$'\n'*) echo running ;;
    *$'\n'none$'\n'*) echo none ;;
    *$'\n'2$'\n'*) echo 2 ;;
    *) sort -rn <<< "${lines:-UNKNOWN}" | head -n 1 ;;
  esac
}

# Looks at the pod again and again and does what is due; knows nothing that a look doesn't tell,
# but whether FLAGS were started on this pod.
train() {
  local created='' started='' stopped='' now
  for (( ; ; )); do
    now=$(state)
    if [[ $now == ABSENT ]]; then
      say "creating $name"
      create || [[ $created ]] || exit 1
      created=1 started=''
    elif [[ $now == FAILED || $now == SUSPENDED ]]; then
      say "$name is $now: creating it again"
      delete || :
      continue
    elif [[ $now != ACTIVE ]]; then
      say "$name is $now"
    else
      now=$(progress)
      [[ $started || $now == running || $now == UNKNOWN ]] || now=none # the code is another command's
      case $now in
        none) if install && start "$@"; then started=1 stopped='' && say "started on $name"; fi ;;
        running) started=1 ;;
        UNKNOWN) say "no answer from the workers of $name" ;;
        0) say "done; launch/tpu_vm.sh delete $name gives the pod back" && exit ;;
        143) # by somebody, or together with the pod: then the next look finds it gone
          [[ ! $stopped ]] || { say "stopped: the same command goes on" && exit 143; }
          stopped=1
          ;;
        *) say "ended with exit code $now: see launch/tpu_vm.sh log $name" && exit "$now" ;;
      esac
    fi
    sleep "$every"
  done
}

case $action in
  create)
    create
    [[ $dry_run ]] || wait_until_active
    ;;
  install) install ;;
  start) start "$@" ;;
  log) on_worker "$worker" 'tail -n 100 -F ~/clip_jax.log' ;;
  stop) on_workers stop ;;
  status)
    queued list "--filter=name~(^|/)$name\$"
    progress_of_each
    ;;
  delete) delete ;;
  train)
    if [[ $dry_run ]]; then
      create
      install
      start "$@"
      progress_of_each
    else
      train "$@"
    fi
    ;;
esac

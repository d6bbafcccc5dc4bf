# shellcheck shell=bash
# What the launchers share; they source it.
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
  fail "bash $BASH_VERSION is too old: 4.4 is needed (macOS: brew install bash)"

say() { echo "launch: $*" >&2; }

# The comment at the head of a launcher is its help.
usage() { awk 'NR > 1 && !/^#/ {exit} NR > 1 {sub(/^# ?/, ""); print}' "$0"; }

needs_value() {
  [[ $# -gt 1 && $2 != -- ]] || fail "$1 needs a value; see $0 --help"
}

whole_number() { # name value least
  if [[ ! $2 =~ ^[0-9]{1,9}$ ]] || ((10#$2 < $3)); then
    fail "$1 $2: a whole number of at least $3 is needed"
  fi
}

needs_tool() {
  command -v "$1" > /dev/null || fail "$1 is not installed: $2"
}

check_bucket() { # name, or nothing
  [[ ! $1 || $1 =~ ^[a-z0-9][a-z0-9._-]+$ ]] ||
    fail "--bucket $1: give the bare name of a bucket, such as my-bucket, without gs://"
}

# The words after `--`: flags of clip_jax.main, or another command.
check_words() {
  (($#)) || fail "nothing to run: give the training command's flags after --"
}

# Leaves in $command what the words after `--` stand for.
# shellcheck disable=SC2034
training_command() {
  check_words "$@"
  command=("$@")
  [[ $1 != -* ]] || command=("${PYTHON:-python}" -m clip_jax.main "$@")
}

# Words as a shell reads them back.
quoted() {
  local words
  printf -v words ' %q' "$@"
  echo "${words:1}"
}

# Runs a command, or prints it where $dry_run is set.
run() {
  if [[ $dry_run ]]; then quoted "$@"; else "$@"; fi
}

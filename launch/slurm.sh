#!/usr/bin/env bash
# Submits the training command to Slurm, one process for each GPU.
#
#   launch/slurm.sh --nodes N --gpus G [options] -- FLAGS
#   launch/slurm.sh --nodes 4 --gpus 8 --time 24:00:00 --venv .venv --sbatch=--partition=a100 \
#       -- --config configs/vit_b16.py --workdir runs/vit_b16 \
#       --config.data.train='/data/{00000..41407}.tar'
#
# FLAGS are those of python -m clip_jax.main; a first word without a dash begins another command.
# The checkout, the data and the workdir lie on a disk that all nodes share. The job is queued
# again when its time is over, when it is preempted and when a node fails, and then goes on from
# its last checkpoint; the log goes on in the same file. scancel ends it.
#
#   --nodes N         nodes (default 1)
#   --gpus G          GPUs of a node, and so its processes; 0: one process on its CPUs
#   --time T          as sbatch takes it (default: the partition's)
#   --name NAME       the job's (default clip_jax); the log is NAME-JOB.log
#   --venv FOLDER     the virtual environment to use
#   --container FILE  an Apptainer image to run in
#   --restarts K      start again after a failure in the same allocation, at most K times (default
#                     3); what is wrong with the flags (exit code 2) no restart mends
#   --grace S         seconds to save in before the time is over (default 300)
#   --sbatch=OPTION   one more option of sbatch, such as --sbatch=--account=vision; may be repeated
#   --srun=OPTION     one more option of srun, such as --srun=--container-image=clip_jax.sqsh
#   --dry-run         print the batch script, submit nothing
#
# PYTHON=... names the interpreter (default: python).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

nodes=1 gpus='' time='' name=clip_jax venv='' container='' restarts=3 grace=300 dry_run=''
sbatch=() srun=()
while (($#)); do
  [[ $1 != --*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}"
  case $1 in
    -h | --help) usage && exit ;;
    --dry-run) dry_run=1 && shift ;;
    --nodes | --gpus | --restarts | --grace)
      needs_value "$@"
      whole_number "$1" "$2" 0
      printf -v "${1#--}" %d "$((10#$2))"
      shift 2
      ;;
    --time | --name | --venv | --container)
      needs_value "$@"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --sbatch) needs_value "$@" && sbatch+=("$2") && shift 2 ;;
    --srun) needs_value "$@" && srun+=("$2") && shift 2 ;;
    --) shift && break ;;
    *) fail "unknown option $1; see $0 --help" ;;
  esac
done
[[ $gpus ]] || fail "how many GPUs has a node? --gpus 8"
whole_number --nodes "$nodes" 1
[[ $name =~ ^[A-Za-z0-9._-]+$ ]] || fail "--name $name: letters, digits, dots and dashes only"
[[ ! $time || $time =~ ^[0-9:-]+$ ]] ||
  fail "--time $time: give it as sbatch takes it, such as 24:00:00"
for option in ${sbatch[@]+"${sbatch[@]}"} ${srun[@]+"${srun[@]}"}; do
  [[ $option == -* && $option != *$'\n'* ]] ||
    fail "$option is no option: write --sbatch=--partition=NAME"
done
training_command "$@"
[[ ! $venv || -f $venv/bin/activate ]] || fail "--venv $venv: there is no bin/activate in it"
[[ ! $container || -f $container ]] || fail "--container $container: no such file"
[[ $dry_run ]] || needs_tool sbatch "log in to a node of the cluster that has Slurm"

[[ ! $container ]] || command=(apptainer exec --nv "$container" "${command[@]}")
step=(srun --kill-on-bad-exit=0 --wait="$grace")
directives=(
  "--job-name=$name" "--output=$name-%j.log" --open-mode=append "--nodes=$nodes"
  "--ntasks-per-node=$((gpus ? gpus : 1))" --requeue "--signal=B:USR1@$grace"
)
# every process sees all GPUs of its node: jax.distributed takes the one of its local rank
((!gpus)) || directives+=("--gpus-per-node=$gpus") step+=(--gpu-bind=none)
[[ ! $time ]] || directives+=("--time=$time")

script() {
  echo '#!/usr/bin/env bash'
  printf '#SBATCH %s\n' "${directives[@]}" ${sbatch[@]+"${sbatch[@]}"}
  cat << END
set -uo pipefail
[[ ! \${SLURM_CPUS_PER_TASK-} ]] || export SRUN_CPUS_PER_TASK=\$SLURM_CPUS_PER_TASK
${venv:+source $(quoted "$venv/bin/activate")
}
preempted() { [[ \$(squeue --noheader --job="\$SLURM_JOB_ID" --Format=PreemptTime) == *[0-9]* ]]; }
stopping='' tries=0
trap 'stopping=1; scancel --signal=TERM "\$SLURM_JOB_ID"' USR1

while [[ ! \$stopping ]]; do
  $(quoted "${step[@]}" ${srun[@]+"${srun[@]}"} "${command[@]}") &
  step=\$!
  while
    wait "\$step"
    code=\$?
    kill -0 "\$step" 2> /dev/null
  do :; done
  if preempted; then stopping=1; fi
  if [[ ! \$stopping ]]; then
    ((code != 0 && code != 2 && tries++ < $restarts)) || exit "\$code"
    echo "launch: exit code \$code, starting again (restart \$tries of $restarts)" >&2
    sleep 10
  fi
done
scontrol requeue "\$SLURM_JOB_ID"
END
}

if [[ $dry_run ]]; then script; else script | sbatch; fi

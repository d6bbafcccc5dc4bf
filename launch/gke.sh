#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster: one JobSet, one pod for each host.
#
#   launch/gke.sh NAME --image IMAGE --tpu TYPE --topology AxB[xC] [options] -- FLAGS
#   launch/gke.sh clip --image gcr.io/my-project/clip_jax --tpu v5e --topology 16x16 --spot \
#       --service-account trainer -- --config configs/vit_b16.py --workdir gs://my-bucket/vit_b16 \
#       --config.data.train='gs://my-bucket/pairs/{00000..41407}.tar'
#
# FLAGS are those of python -m clip_jax.main; a first word without a dash begins another command.
# A lost node or a preempted slice starts all pods again, as often as it happens; a failure does,
# at most --restarts times; what is wrong with the flags (exit code 2) ends the job. All go on from
# the last checkpoint, and so does this command once the job has ended.
#
#   --image IMAGE      built from launch/Dockerfile
#   --tpu TYPE         v4, v5e, v5p or v6e
#   --topology AxB     the node pool's: 2x4, 16x16 (v5e, v6e), 4x4x4 (v4, v5p); gives the hosts
#   --chips-per-host C 8 for a v5e or v6e 2x4 on machines of the kind -8t (default 4)
#   --spot             on spot nodes
#   --service-account  a Kubernetes account that may use the bucket (Workload Identity)
#   --bucket BUCKET    mount it at /mnt/BUCKET, by the Cloud Storage FUSE driver, for programs that
#                      need files
#   --namespace NS     (default: the context's)
#   --restarts K       after failures (default 3)
#   --grace S          seconds to save in before a pod is killed (default 300; spot nodes give less)
#   --dry-run          print the manifest, apply nothing
#
# The cluster needs JobSet 0.10.1 or newer.
#   kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME,batch.kubernetes.io/job-completion-index=0
#   kubectl delete jobset NAME     stops it; it saves first
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name='' image='' tpu='' topology='' chips_per_host='' spot='' bucket='' service_account=''
namespace='' restarts=3 grace=300 dry_run=''
while (($#)); do
  [[ $1 != --*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}"
  case $1 in
    -h | --help) usage && exit ;;
    --dry-run) dry_run=1 && shift ;;
    --spot) spot=1 && shift ;;
    --restarts | --grace | --chips-per-host)
      needs_value "$@"
      whole_number "$1" "$2" 0
      option=${1#--}
      printf -v "${option//-/_}" %d "$((10#$2))"
      shift 2
      ;;
    --image | --tpu | --topology | --bucket | --service-account | --namespace)
      needs_value "$@"
      option=${1#--}
      printf -v "${option//-/_}" %s "$2"
      shift 2
      ;;
    --) shift && break ;;
    -*) fail "unknown option $1; see $0 --help" ;;
    *)
      [[ ! $name ]] || fail "unexpected $1: the training command's flags follow --"
      name=$1 && shift
      ;;
  esac
done
[[ $name ]] || fail "the job has no name; see $0 --help"
# as a part of the pods' host names it may not be longer
[[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
  fail "name $name: up to 40 lower-case letters, digits and dashes, a letter first"
[[ $image =~ ^[A-Za-z0-9._:/@-]+$ ]] ||
  fail "--image '$image': name an image built from launch/Dockerfile"
check_bucket "$bucket"
for label in "$service_account" "$namespace"; do
  [[ ! $label || $label =~ ^[a-z0-9][a-z0-9.-]*$ ]] || fail "'$label' is no name of Kubernetes"
done
check_words "$@"

flat='1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16'
case $tpu in
  v4) accelerator='tpu-v4-podslice' ;;
  v5p) accelerator='tpu-v5p-slice' ;;
  v5e) accelerator='tpu-v5-lite-podslice' ;;
  v6e) accelerator='tpu-v6e-slice' ;;
  *) fail "--tpu '$tpu': v4, v5e, v5p or v6e" ;;
esac
if [[ $tpu == v5e || $tpu == v6e ]]; then
  [[ $topology && " $flat " == *" $topology "* ]] || fail "--topology '$topology': $tpu has $flat"
else
  [[ $topology =~ ^[1-9][0-9]?x[1-9][0-9]?x[1-9][0-9]?$ ]] ||
    fail "--topology '$topology': $tpu has three dimensions, such as 2x2x1 or 4x4x4"
  IFS=x read -r a b c <<< "$topology"
  [[ " 2x2x1 2x2x2 2x2x4 2x4x4 " == *" $topology "* ]] ||
    ((a % 4 + b % 4 + c % 4 == 0 && a <= b && b <= c)) ||
    fail "--topology $topology: above 2x4x4 the sides are multiples of 4 in rising order, such as 4x4x8"
fi
chips=$((${topology//x/*}))
usual=$((chips < 4 ? chips : 4))
: "${chips_per_host:=$usual}"
((chips_per_host == usual)) || [[ $chips_per_host == 8 && $topology == 2x4 ]] ||
  fail "--chips-per-host $chips_per_host: a host of a $tpu $topology has $usual"
hosts=$((chips / chips_per_host))
[[ $dry_run ]] || needs_tool kubectl "see https://kubernetes.io/docs/tasks/tools/"

# Words as JSON strings, which YAML reads too; Kubernetes would expand $(NAME).
json() {
  local word words=''
  for word; do
    [[ $word != *[[:cntrl:]]* ]] || fail "a flag holds a control character: $(quoted "$word")"
    word=${word//\\/\\\\} word=${word//\"/\\\"}
    words+=", \"${word//\$/\$\$}\""
  done
  echo "[${words:2}]"
}

# The optional parts of the manifest; a heredoc's ${x:+...} would eat the quotes.
on_spot='' mount='' volume='' account=''
[[ ! $spot ]] || on_spot='
                cloud.google.com/gke-spot: "true"
              tolerations:
                - key: cloud.google.com/gke-spot
                  operator: Equal
                  value: "true"
                  effect: NoSchedule'
[[ ! $service_account ]] || account="
              serviceAccountName: $service_account"
# hosts must see each other's files at once, and a checkpoint takes its name by renaming a folder
options=implicit-dirs,rename-dir-limit=100000
options+=,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0
[[ ! $bucket ]] || mount="
                    - name: bucket
                      mountPath: /mnt/$bucket" volume="
                - name: bucket
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: $bucket
                      mountOptions: $options"

args=$(json "$@")

manifest() {
  cat << END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    # all pods on one slice
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:
      - name: mistake
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
        onJobFailureMessagePatterns: ["matching FailJob rule at index 0"]
      - name: preempted
        action: RestartJobSetAndIgnoreMaxRestarts
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: hosts
      replicas: 1
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0  # one pod that fails ends all; the JobSet starts them again
          podReplacementPolicy: Failed
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [2]
              - action: FailJob
                onPodConditions:
                  - type: DisruptionTarget
                    status: "True"
          template:
            metadata:
              annotations:
                gke-gcsfuse/volumes: "$([[ $bucket ]] && echo true || echo false)"
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: $grace$account
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology$on_spot
              containers:
                - name: train
                  image: $image
                  # as PID 1 it passes SIGTERM on, and a run that was stopped is no success
                  command: ["launch/local.sh", "1", "--"]
                  args: $args
                  ports:
                    - containerPort: 8471
                    - containerPort: 8482
                  resources:
                    limits:
                      google.com/tpu: $chips_per_host
                  volumeMounts:
                    - name: memory
                      mountPath: /dev/shm$mount
              volumes:
                - name: memory
                  emptyDir:
                    medium: Memory$volume
END
}

if [[ $dry_run ]]; then
  manifest
  exit
fi
kubectl=(kubectl ${namespace:+"--namespace=$namespace"})
ended=$(
  "${kubectl[@]}" get jobset "$name" --ignore-not-found \
    --output='jsonpath={.metadata.name} {.status.terminalState}'
)
case $ended in
  '') ;;
  "$name "?*) "${kubectl[@]}" delete jobset "$name" ;;
  *) fail "$name is running: kubectl delete jobset $name stops it, and it saves first" ;;
esac
"${kubectl[@]}" create --filename=- <<< "$(manifest)"

#!/usr/bin/env bash
# Trains on a Cloud TPU VM: makes or reuses it, installs this checkout, runs dreambooth_jax.train on every worker and
# brings the run's folder home. `./launch_tpu.sh --help` explains. Bash 3.2, which macOS has, is enough.
set -euo pipefail

ME=${0##*/}
CHECKOUT=$(cd "$(dirname "$0")" && pwd)
REMOTE=dreambooth  # folder on the VM, in the home folder; the code, and runs/ inside

usage() {
  cat <<HELP
Trains on a Cloud TPU VM and brings the run home.

  ./$ME --name=NAME --zone=ZONE [options] -- TRAIN_ARGUMENTS
  ./$ME --name=NAME --zone=ZONE --delete

Everything after -- goes to python -m dreambooth_jax.train on every worker, as it is; --workdir and --distributed are
added. What happens, in this order:

  1. The VM is made, or reused if it is there. One that was preempted is deleted and made anew.
  2. This checkout (configs/, dreambooth_jax/) and the folders of --upload are copied to every worker, and installed
     with the extra 'tpu' into ~/$REMOTE/.venv, with a Python of its own.
  3. On a new VM without --runs, a run that is in --workdir is copied there too, so that it goes on where it stopped.
  4. Training runs on every worker at once. What it prints is shown here and kept in launch_tpu.log of the run.
  5. The run's folder is copied from worker 0 to --workdir, also if training failed.
  6. With --delete the VM is deleted. Without, it stays, ready for the next run, and costs money.

If anything breaks off (the connection, a preempted VM), give the same command again: it resumes.

Options
  --name=NAME       of the VM: lower-case letters, digits and dashes
  --zone=ZONE       that has the TPU, such as us-west4-a
  --type=TYPE       accelerator and its size (default v5litepod-8): v5litepod-8, v6e-8, v5p-8, v4-8 ...
  --version=IMAGE   runtime image (default: the one that Cloud TPU recommends for the type)
  --project=ID      (default: that of your gcloud configuration)
  --spot            a spot VM: cheaper, may be taken away at any time; add --sync
  --workdir=FOLDER  where the run's folder is brought to (default runs/NAME)
  --upload=FOLDER   copy this folder beside the code on every worker, under its own name; may be given again.
                    Photos: --upload=photos -- ... --config.data.instance_dir=photos
  --runs=FOLDER     on the VM, where runs are kept (default ~/$REMOTE/runs). Types of several hosts (a size above 8)
                    need one that all hosts share, such as a mounted bucket or file store; mount it before
  --sync=SECONDS    bring what is new in the run's folder home this often while it trains (default 0: only at the end)
  --keep            keep the VM afterwards (the default)
  --delete          delete the VM afterwards; alone, without training
  --dry_run         print the commands, run nothing
  --help            this text

Examples
  ./$ME --name=dog --zone=us-west4-a --dry_run -- --config=configs/dog.py
  ./$ME --name=dog --zone=us-west4-a --spot --sync=600 --delete -- \\
      --config=configs/dog.py --config.base.steps=400
  ./$ME --name=pet --zone=us-west4-a --upload=photos -- --config=configs/dog.py \\
      --config.data.instance_dir=photos --config.data.instance_prompt='a sks cat' --config.data.class_prompt='a cat'

Before the first time: install the gcloud command, then 'gcloud auth login', 'gcloud config set project ID', and enable
the API tpu.googleapis.com. Types of several hosts also need 'ssh-add ~/.ssh/google_compute_engine'.
HELP
}

say() { printf '%s: %s\n' "$ME" "$*" >&2; }
fail() { say "$*"; exit 1; }
quoted() { printf ' %q' "$@"; }

# The options.

name='' zone='' type=v5litepod-8 version='' project='' workdir='' runs='' sync=0
spot=false delete=false dry_run=false
uploads=() train=()

while [[ $# -gt 0 ]]; do
  option=${1%%=*}
  case $1 in
    --) shift; train=(${1+"$@"}); break ;;
    --help | -h) usage; exit 0 ;;
    --spot) spot=true; shift; continue ;;
    --keep) delete=false; shift; continue ;;
    --delete) delete=true; shift; continue ;;
    --dry_run | --dry-run) dry_run=true; shift; continue ;;
    --*=*) value=${1#*=}; shift ;;
    --*) [[ $# -gt 1 ]] || fail "$option needs a value, or is no option; --help lists them"; value=$2; shift 2 ;;
    *) fail "unexpected argument '$1'; arguments of the training go after --" ;;
  esac
  case $option in
    --name) name=$value ;;
    --zone) zone=$value ;;
    --type) type=$value ;;
    --version) version=$value ;;
    --project) project=$value ;;
    --workdir) workdir=${value%/} ;;
    --upload) uploads+=("${value%/}") ;;
    --runs) runs=${value%/} ;;
    --sync) sync=$value ;;
    *) fail "there is no option $option; --help lists them, and arguments of the training go after --" ;;
  esac
done

[[ -n $name ]] || fail '--name is missing; name the VM, for example --name=dog'
[[ -n $zone ]] || fail '--zone is missing; name the zone of the TPU, for example --zone=us-west4-a'
[[ $name =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] ||
  fail "--name is '$name' but must be lower-case letters, digits and dashes, and start with a letter"
[[ $zone =~ ^[a-z][a-z0-9-]+$ ]] || fail "--zone is '$zone' but must look like us-west4-a"
[[ $type =~ ^[a-z0-9]+-[0-9]+$ ]] || fail "--type is '$type' but must look like v5litepod-8"
[[ $sync =~ ^[0-9]+$ ]] || fail "--sync is '$sync' but must be a whole number of seconds"
if [[ -z $version ]]; then
  case $type in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v[234]-*) version=tpu-ubuntu2204-base ;;
    *)
      fail "no runtime image is known for --type=$type; give one with --version, of those that" \
        "'gcloud compute tpus tpu-vm versions list --zone=$zone' lists"
      ;;
  esac
fi

workdir=${workdir:-runs/$name}
run=${workdir##*/}
[[ $run =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] ||
  fail "--workdir is '$workdir' but its last part must be letters, digits, dots and dashes"

if [[ -n $runs ]]; then
  [[ $runs =~ ^/[A-Za-z0-9._/-]+$ ]] || fail "--runs is '$runs' but must be a full path, such as /mnt/shared/runs"
elif [[ ${type##*-} -gt 8 && ${#train[@]} -gt 0 ]]; then
  fail "--type=$type has several hosts, which must share the run's folder; mount a disk on all and name it with --runs"
fi

plain='^[A-Za-z0-9][A-Za-z0-9._ -]*$'
for folder in ${uploads[@]+"${uploads[@]}"}; do
  [[ -d $folder ]] || fail "--upload is '$folder' but there is no such folder"
  [[ ${folder##*/} =~ $plain ]] ||
    fail "--upload is '$folder' but its name must be letters, digits, dots, dashes and spaces"
  case ${folder##*/} in
    configs | dreambooth_jax | runs) fail "--upload is '$folder' but the code has a folder of this name; rename it" ;;
  esac
done

# A wrong setting should cost a second here, not a VM.
config=''
for argument in ${train[@]+"${train[@]}"}; do
  case $argument in
    --workdir | --workdir=*) fail "--workdir goes before --, where it names the folder on this machine" ;;
    --config=*) config=${argument#--config=} ;;
    --config) fail 'write --config=FILE after --, with the equals sign' ;;
  esac
done
if [[ ${#train[@]} -eq 0 ]]; then
  $delete || fail 'nothing to do; give the training its arguments, for example -- --config=configs/dog.py, or --delete'
else
  [[ -n $config ]] || fail '--config is missing after --; for example -- --config=configs/dog.py'
  file=${config%%:*}
  case $file in
    configs/*) [[ -f $CHECKOUT/$file ]] || fail "--config is '$config' but $CHECKOUT/$file does not exist" ;;
    *)
      found=false
      for folder in ${uploads[@]+"${uploads[@]}"}; do
        [[ ! -f ${folder%"${folder##*/}"}$file ]] || found=true
      done
      $found || fail "--config is '$config' but must be a file of configs/ or of a folder given with --upload"
      ;;
  esac
fi

$dry_run || command -v gcloud > /dev/null ||
  fail 'the gcloud command is not installed; install the Google Cloud CLI, then run: gcloud auth login'

# The commands.

there=$runs # the folder of runs as training sees it, and as scp does
there_for_scp=$runs
if [[ -z $runs ]]; then
  there=runs
  there_for_scp=$REMOTE/runs
fi

at=("--zone=$zone")
[[ -z $project ]] || at+=("--project=$project")

# Says the command, and runs it unless --dry_run. No standard input: ssh would eat that of the caller.
execute() {
  if $dry_run; then
    printf '%s\n' "$(quoted "$@")" | sed 's/^ //'
  else
    printf '+%s\n' "$(quoted "$@")" >&2
    "$@" < /dev/null
  fi
}

tpu() { # VERB ARGUMENT...
  local verb=$1
  shift
  execute gcloud compute tpus tpu-vm "$verb" "$@" "${at[@]}" --quiet
}

on_workers() { tpu ssh "$name" --worker=all --command="$1"; }

note() { if $dry_run; then printf '# %s\n' "$*"; else say "$*"; fi; }

# Sets `state`: 'absent', or as the API says: READY, PREEMPTED, ...
state=absent
describe=(compute tpus tpu-vm describe "$name" "${at[@]}" '--format=value(state,acceleratorType)')
look() {
  local answer status=0 found
  answer=$(gcloud "${describe[@]}" 2>&1 < /dev/null) || status=$?
  if [[ $status -ne 0 ]]; then
    case $answer in
      *NOT_FOUND* | *'not found'*) state=absent; return ;;
      *) fail "gcloud cannot look up $name: $(printf '%s' "$answer" | tr '\n' ' ')" ;;
    esac
  fi
  answer=$(printf '%s\n' "$answer" | tail -n 1) # warnings come first
  state=${answer%%[[:space:]]*}
  found=${answer##*[[:space:]]}
  found=${found##*/}
  if [[ $found != "$state" && -n $found && $found != "$type" && ${#train[@]} -gt 0 ]]; then
    fail "$name is there as $found but --type is $type; give another --name, --type=$found, or --delete it first"
  fi
}

create() {
  local options=("--accelerator-type=$type" "--version=$version")
  ! $spot || options+=(--spot)
  tpu create "$name" "${options[@]}" ||
    fail "gcloud could not make $name (its reason stands above); another --zone or --type may have room or quota"
  fresh=true
}

remove() {
  tpu delete "$name" || fail "gcloud could not delete $name, which may still cost money; delete it in the console"
}

# Copies what is new in the run's folder from worker 0 into --workdir, and deletes the checkpoints here that are gone
# there. On the VM, what is new since the list of files that .synced names (of the last copy that arrived here) is put
# beside the run as links, so that nothing vanishes while it is copied. Checkpoints come whole or not at all: those
# being written are left out, and so is one that was deleted before all of it was linked.
fetch() {
  local parent=${workdir%"$run"} part status=0 have=none
  parent=${parent:-./}
  part=$parent.$run.part
  [[ ! -f $workdir/.synced ]] || have=$(head -n 1 "$workdir/.synced")
  [[ $have =~ ^[0-9]+$ ]] || have=none
  execute mkdir -p "$part" "$workdir" || return 1
  tpu ssh "$name" --worker=0 --command="set -e
export LC_ALL=C
cd $REMOTE
cd $there/$run
side=../.$run.sync
rm -rf \$side/new
mkdir -p \$side/new
find . -name '*.orbax-checkpoint-tmp*' -prune -o -type f ! -name .lock ! -name .synced -printf '%s %T@ %p\n' | sort > \$side/now
touch \$side/list.$have
comm -13 \$side/list.$have \$side/now | cut -d' ' -f3- > \$side/wanted
how=-p # disks without links
! ln -f \$side/now \$side/link 2> /dev/null || how=-l
xargs -r -d '\n' cp \$how --parents -t \$side/new < \$side/wanted 2> \$side/errors ||
  if grep -v 'No such file' \$side/errors; then exit 1; fi
id=\$(date +%s%N)
{ echo \$id; find . -path './*/checkpoints/*' -prune -type d; } > \$side/new/.synced
find \$side -name 'list.*' ! -name list.$have -delete
mv \$side/now \$side/list.\$id" || status=1
  [[ $status -ne 0 ]] || tpu scp --recurse "$name:$there_for_scp/.$run.sync/new" "$part" --worker=0 || status=1
  [[ $status -ne 0 ]] || $dry_run || take_over "$part/new" || status=1
  execute rm -rf "$part"
  return $status
}

# Moves what arrived in FOLDER to --workdir: checkpoints, each in one move, then the rest, and .synced last.
take_over() {
  local new=$1 path
  for path in "$new"/*/checkpoints/*; do
    [[ -d $path ]] || continue
    if ! grep -Fqx "./${path#"$new"/}" "$new/.synced"; then
      rm -rf "$path" # not whole
    elif [[ ! -e $workdir/${path#"$new"/} ]]; then
      mkdir -p "$workdir/$(dirname "${path#"$new"/}")"
      mv "$path" "$workdir/${path#"$new"/}" || return 1
    fi
  done
  for path in "$workdir"/*/checkpoints/*; do
    [[ ! -d $path ]] || grep -Fqx "./${path#"$workdir"/}" "$new/.synced" || rm -rf "$path"
  done
  mv "$new/.synced" "$new.synced"
  cp -R "$new/." "$workdir" && mv "$new.synced" "$workdir/.synced"
}

syncing=''
stop_sync() {
  [[ -n $syncing ]] || return 0
  kill "$syncing" 2> /dev/null || true
  wait "$syncing" 2> /dev/null || true
  syncing=''
}

up=false # a VM stands and costs money
archive=''
finish() {
  local status=$?
  stop_sync
  [[ -z $archive ]] || rm -f "$archive"
  if $up; then
    say "$name is still there and costs money; delete it with:" \
      "./$ME --name=$name --zone=$zone${project:+ --project=$project} --delete"
  fi
  exit $status
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# 0. Delete alone.

if [[ ${#train[@]} -eq 0 ]]; then
  if ! $dry_run; then
    look
    if [[ $state == absent ]]; then
      say "$name is not there; nothing to delete"
      exit 0
    fi
  fi
  remove
  exit 0
fi

# 1. The VM.

fresh=false
if $dry_run; then
  execute gcloud "${describe[@]}"
  note 'if it is not there:'
  create
else
  look
  case $state in
    absent) say "making $name ($type, $zone)"; create ;;
    READY) say "reusing $name" ;;
    PREEMPTED) say "$name was preempted; deleting it and making it anew"; remove; create ;;
    STOPPED) tpu start "$name" || fail "gcloud could not start $name" ;;
    *) fail "$name is $state; wait until it is READY, or delete it with --delete, then run this again" ;;
  esac
  up=true
fi

# 2. The code and its environment.

contents=(-C "$CHECKOUT" setup.py pyproject.toml README.md LICENSE configs dreambooth_jax)
for folder in ${uploads[@]+"${uploads[@]}"}; do
  contents+=(-C "$(cd "$folder/.." && pwd)" "$(basename "$(cd "$folder" && pwd)")")
done
packed=${TMPDIR:-/tmp}/$REMOTE.tar.gz
if ! $dry_run; then
  archive=$(mktemp "${TMPDIR:-/tmp}/$REMOTE.XXXXXX")
  packed=$archive
fi
export COPYFILE_DISABLE=1 # else macOS adds a ._ twin of every file
execute tar -czf "$packed" --exclude=__pycache__ --exclude='.*_cache' "${contents[@]}" ||
  fail 'the checkout could not be packed'
tpu scp "$packed" "$name:$REMOTE.tar.gz" --worker=all ||
  fail "the code could not be copied to $name; types of several hosts need: ssh-add ~/.ssh/google_compute_engine"

mounted=:
[[ -z $runs ]] || mounted="[ -d $runs ] || { echo '$runs is not there; mount it on every worker'; exit 1; }"
# Python 3.10, which older images have, is too old: uv brings a newer one.
on_workers "set -e
mkdir -p $REMOTE
cd $REMOTE
$mounted
mkdir -p $there/$run
rm -rf dreambooth_jax configs
tar -xzf ../$REMOTE.tar.gz
if [ ! -x .venv/bin/python ]; then
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --python 3.12 .venv
fi
python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu]'" ||
  fail "the package could not be installed on $name (the reason stands above)"

# 3. A run that is here already.

if [[ -n $runs ]]; then
  : # the newest state lies there
elif $dry_run; then
  note "if $workdir holds a run already, and the VM is new:"
  tpu scp --recurse "$workdir" "$name:$there_for_scp" --worker=all
elif $fresh && [[ -f $workdir/config.json ]]; then
  say "$workdir holds a run; it goes on"
  tpu scp --recurse "$workdir" "$name:$there_for_scp" --worker=all || fail "$workdir could not be copied to $name"
fi

# 4. Training.

if [[ $sync -gt 0 ]]; then
  if $dry_run; then
    note "every $sync seconds while it trains, the copy that stands at the end"
  else
    (
      trap - EXIT INT TERM
      pause=''
      trap '[[ -z $pause ]] || kill "$pause"; exit 0' TERM
      while true; do
        sleep "$sync" & pause=$!
        wait "$pause"
        pause=''
        fetch > /dev/null 2>&1 || say "the copy of this moment failed; the next one comes in $sync s"
      done
    ) &
    syncing=$!
  fi
fi

trained=true
arguments=$(quoted "--workdir=$there/$run" --distributed "${train[@]}")
on_workers "set -o pipefail
cd $REMOTE
.venv/bin/python -m dreambooth_jax.train$arguments 2>&1 | tee -a $there/$run/launch_tpu.log" || trained=false
stop_sync

# 5. and 6. The run comes home, and the VM goes.

if ! $trained; then
  look
  if [[ $state == PREEMPTED || $state == absent ]]; then
    up=false
    fail "$name was preempted; give the same command again to go on from what $workdir holds"
  fi
fi
fetch || fail "the run could not be copied from $name, which is kept therefore; give the same command again"
if $delete; then
  up=false
  remove
fi
$trained || fail "training failed on $name; its last words stand above and in $workdir/launch_tpu.log"
$dry_run || say "the run is in $workdir"

# Sourced by start.sh, supervise.sh and cleanup.sh: the cgroup that a run gets on a host, named after it, so that the
# kernel holds its limits, and so that what sheds every other mark is still found.
# shellcheck shell=bash disable=SC2034,SC2154,SC2004  # who sources it has the rest; keys of CGROUP are words

ROOM=16 # processes that the supervisor and what it calls need beside the agent's own

# scope_name RUN_ID: of the cgroup, and of systemd's unit, into SCOPE_NAME.
scope_name() { SCOPE_NAME=coding-agent-$1.scope; }

# own_cgroup CONTROLLER: this process's folder in the hierarchy that has the controller, into FOLDER. A controller is in
# a hierarchy of its own (v1) or in the one of all others (v2).
own_cgroup() {
  local line names path all=
  while IFS= read -r line; do
    names=${line#*:}
    path=${names#*:} names=${names%%:*}
    [[ $path == / ]] && path=
    case ,$names, in
      *,"$1",*)
        for FOLDER in "/sys/fs/cgroup/$names$path" "/sys/fs/cgroup/$1$path"; do
          [[ -e $FOLDER/cgroup.procs ]] && return
        done
        ;;
      ,,) all=$path ;;
    esac
  done 2>/dev/null </proc/self/cgroup
  FOLDER=/sys/fs/cgroup$all
  [[ -e $FOLDER/cgroup.procs ]] # else systemd's hybrid, whose v2 has no controllers, or nothing is mounted
}

# first_number FILE...: the number at the beginning of the first of these files that there is, into NUMBER; no number
# where the kernel sets no limit.
first_number() {
  local file
  NUMBER=
  for file; do
    [[ -r $file ]] || continue
    read -r NUMBER _ <"$file"
    [[ $NUMBER && $NUMBER != *[!0-9]* ]] && return
    break
  done 2>/dev/null
  return 1
}

# thousandths NUMBER: of a number with a fraction or without into NUMBER.
thousandths() {
  local fraction=000
  [[ $1 == *.* ]] && fraction=${1#*.}000
  NUMBER=$((10#${1%%.*} * 1000 + 10#${fraction:0:3}))
}

# find_held RUN_ID MEMORY PIDS CPUS: which of these limits (0: none) the kernel holds for this process in its run's own
# cgroup, into HELD, and the folders into CGROUP; fails where it is in none.
find_held() {
  local controller cpus period
  scope_name "$1"
  HELD='' CGROUP=()
  for controller in memory pids cpu; do
    own_cgroup "$controller" && [[ $FOLDER == */"$SCOPE_NAME" ]] && CGROUP[$controller]=$FOLDER
  done
  ((${#CGROUP[@]})) || return 1
  # The kernel rounds down to whole pages.
  (($2)) && [[ ${CGROUP[memory]-} ]] &&
    first_number "${CGROUP[memory]}"/memory.{max,limit_in_bytes} && ((NUMBER <= $2)) && HELD+=' memory'
  (($3)) && [[ ${CGROUP[pids]-} ]] && first_number "${CGROUP[pids]}/pids.max" && ((NUMBER <= $3 + ROOM)) && HELD+=' pids'
  thousandths "$4"
  cpus=$NUMBER
  if ((cpus)) && [[ ${CGROUP[cpu]-} ]] && first_number "${CGROUP[cpu]}"/{cpu.max,cpu.cfs_quota_us}; then
    period=100000
    [[ -r ${CGROUP[cpu]}/cpu.cfs_period_us ]] && read -r period <"${CGROUP[cpu]}/cpu.cfs_period_us"
    [[ -r ${CGROUP[cpu]}/cpu.max ]] && read -r _ period <"${CGROUP[cpu]}/cpu.max"
    ((NUMBER * 1000 <= (cpus + 10) * period)) && HELD+=' cpus'
  fi
  return 0
}

# find_scope RUN_ID MEMORY PIDS CPUS: what gives a run its cgroup here: the beginning of a command line into SCOPED,
# or folders made here into ENTERED. Where the kernel holds less than that, WHY_NOT says why.
find_scope() {
  SCOPED=() ENTERED=() WHY_NOT=
  scope_name "$1"
  if [[ -d /run/systemd/system ]]; then
    if ((EUID)); then
      # On v1 systemd leaves the controllers to root alone.
      [[ -e /sys/fs/cgroup/cgroup.controllers ]] || { WHY_NOT='this host has cgroups v1, which only root can use'; return; }
      # Without lingering his manager, and all below it, ends with his last session.
      [[ -e /var/lib/systemd/linger/$(id -un) ]] ||
        { WHY_NOT="the host's user does not linger; \`loginctl enable-linger\` there lets the kernel hold it"; return; }
    fi
    scope_of_systemd "$@" || WHY_NOT='systemd gave the run no scope'
  else
    scope_by_hand "$@" || WHY_NOT='this host has neither systemd nor cgroups that can be written'
  fi
}

# scope_of_systemd RUN_ID MEMORY PIDS CPUS: tried first, for a moment, with a scope of the same kind.
scope_of_systemd() {
  local manager=(systemd-run --system) memory=() properties=() policy
  ((EUID)) && manager=(env -u DBUS_SESSION_BUS_ADDRESS "XDG_RUNTIME_DIR=/run/user/$EUID" systemd-run --user)
  manager+=(--scope --quiet --collect --no-ask-password)
  (($2)) && memory=(-p "MemoryMax=$2" -p MemorySwapMax=0)
  (($3)) && properties+=(-p "TasksMax=$(($3 + ROOM))")
  thousandths "$4"
  ((NUMBER)) && properties+=(-p "CPUQuota=$((NUMBER < 10 ? 1 : NUMBER / 10))%")
  for policy in continue ''; do
    # systemd ends a scope in which the kernel ended a process for want of memory, unless it is told otherwise, which
    # older ones can't be. It learns of that on v2 only.
    if [[ $policy ]]; then
      properties=(-p OOMPolicy=continue "${properties[@]}")
    else
      properties=("${properties[@]:2}")
      [[ -e /sys/fs/cgroup/cgroup.controllers && ${memory[*]-} ]] && memory=() &&
        WHY_NOT='this systemd ends a run of which the kernel ended one process for want of memory'
    fi
    SCOPED=("${manager[@]}" "${memory[@]}" "${properties[@]}")
    # shellcheck disable=SC2016  # for the bash that is started
    if timeout -k 1 15 "${SCOPED[@]}" --unit="${SCOPE_NAME%.scope}-try-$$.scope" -- bash -c \
      '. "$1/common.sh"; . "$1/scope.sh"; find_held "$2" 0 0 0' scope "$here" "$1-try-$$"; then
      SCOPED+=(--unit="$SCOPE_NAME" --)
      return 0
    fi
  done </dev/null >/dev/null 2>&1
  SCOPED=()
  return 1
}

# scope_by_hand RUN_ID MEMORY PIDS CPUS: where nobody else looks after cgroups, and this user may make them.
scope_by_hand() {
  local controller parent folder
  for controller in memory pids cpu; do
    own_cgroup "$controller" || continue
    for parent in "$FOLDER" /sys/fs/cgroup; do
      [[ -e $parent/cgroup.procs ]] || continue
      # A cgroup of v2 with processes in it can't share its controllers out, unless it is the first one.
      [[ -e $parent/cgroup.subtree_control ]] && printf '+%s' "$controller" >"$parent/cgroup.subtree_control"
      folder=$parent/$SCOPE_NAME
      mkdir -p -- "$folder" && [[ -w $folder/cgroup.procs ]] || continue
      set_limit "$controller" "$folder" "$2" "$3" "$4" && ENTERED+=("$folder") && break
      [[ " ${ENTERED[*]-} " == *" $folder "* ]] || rmdir -- "$folder"
    done
  done 2>/dev/null
  ((${#ENTERED[@]}))
}

# set_limit CONTROLLER FOLDER MEMORY PIDS CPUS: fails where the folder is not of that controller.
set_limit() {
  thousandths "$5"
  case $1 in
    memory)
      if [[ -e $2/memory.max ]]; then
        (($3 == 0)) || { printf 0 >"$2/memory.swap.max"; printf %d "$3" >"$2/memory.max"; }
      else
        [[ -e $2/memory.limit_in_bytes ]] || return 1
        (($3 == 0)) || { printf %d "$3" >"$2/memory.limit_in_bytes"; printf %d "$3" >"$2/memory.memsw.limit_in_bytes"; }
      fi
      ;;
    pids)
      [[ -e $2/pids.max ]] || return 1
      (($4 == 0)) || printf %d $(($4 + ROOM)) >"$2/pids.max"
      ;;
    cpu)
      if [[ -e $2/cpu.max ]]; then
        ((NUMBER == 0)) || printf '%d 100000' $((NUMBER * 100)) >"$2/cpu.max"
      else
        [[ -e $2/cpu.cfs_quota_us ]] || return 1
        ((NUMBER == 0)) || { printf 100000 >"$2/cpu.cfs_period_us"; printf %d $((NUMBER * 100)) >"$2/cpu.cfs_quota_us"; }
      fi
      ;;
  esac
  return 0 # whether the kernel took it is seen from inside
}

# enter_cgroups: this process, and what it starts from now on.
enter_cgroups() {
  local folder
  for folder in "${ENTERED[@]}"; do printf %d "$BASHPID" >"$folder/cgroup.procs"; done 2>/dev/null
  return 0
}

# leave_cgroups: where they were made by hand nobody else removes them.
leave_cgroups() {
  local folder
  [[ -d /run/systemd/system ]] && return
  for folder in "${CGROUP[@]}"; do
    [[ -d $folder ]] || continue
    printf %d "$$" >"${folder%/*}/cgroup.procs"
    rmdir -- "$folder"
  done 2>/dev/null
}

# remove_cgroups RUN_ID: what is left of a run whose supervisor was killed. A process that has just ended is in it for a
# moment yet.
remove_cgroups() {
  local folders tried
  [[ ! -d /run/systemd/system && ! ${CODING_AGENT_OWN_NAMESPACE-} ]] || return 0
  scope_name "$1"
  mapfile -d '' -t folders < <(find /sys/fs/cgroup -type d -name "$SCOPE_NAME" -print0 2>/dev/null)
  ((${#folders[@]})) || return 0
  for ((tried = 0; tried < 40; tried++)); do
    rmdir -- "${folders[@]}" 2>/dev/null
    [[ -d ${folders[0]} || -d ${folders[-1]} ]] || break
    pause 0.05
  done
  return 0
}

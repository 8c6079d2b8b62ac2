# Sourced by supervise.sh: limits that the kernel holds, in the container that was made for the run or in its own
# cgroup on a host, and what it has counted of them. Without a fork: there may be none.
# shellcheck shell=bash disable=SC2034,SC2154,SC2004  # supervise.sh has the rest; keys of CGROUP and PARAM are words
OOM_KILLS=0 FORKS_REFUSED=0 PERIODS=0 THROTTLED=0 FULL_LOOKS=0 MEMORY_HIT='' PIDS_HIT='' CPUS_HIT=''

# find_limits: who holds which limit. What the kernel doesn't, the watch does.
find_limits() {
  local limit name watched='' why=${CODING_AGENT_WHY_NOT_HELD:-this host\'s kernel does not hold it for this user}
  if [[ ${PARAM[scope]} ]]; then
    find_held "${RUN##*/}" "${PARAM[memory]%.*}" "${PARAM[pids]%.*}" "${PARAM[cpus]}"
    PARAM[held]=$HELD
    for limit in memory pids cpus; do
      if [[ ${PARAM[$limit]} =~ ^0(\.0*)?$ ]]; then
        continue
      elif [[ " $HELD " == *" $limit "* ]]; then
        PARAM[$limit]=0
      elif [[ $limit == cpus ]]; then
        notice "limits.cpus is not enforced: $why"
      else
        watched+="${watched:+ and }limits.$limit"
      fi
    done
    [[ $watched ]] && notice "$watched: watched by the supervisor every $WATCH_INTERVAL s: $why"
  elif [[ ${PARAM[held]} ]]; then
    # In a container its own are the first ones to be seen.
    for name in memory pids cpu; do
      CGROUP[$name]=/sys/fs/cgroup/$name
      [[ -e /sys/fs/cgroup/cgroup.controllers ]] && CGROUP[$name]=/sys/fs/cgroup
    done
  fi
  [[ ${PARAM[held]} ]] || return 0
  oom_kills && OOM_KILLS=$COUNT
  forks_refused && FORKS_REFUSED=$COUNT
  throttled nr_periods && PERIODS=$COUNT
  throttled nr_throttled && THROTTLED=$COUNT
  return 0
}

# kernel_count NAME FILE...: the number behind NAME in the first of these files that there is, into COUNT.
kernel_count() {
  local name=$1 file word number
  shift
  COUNT=
  for file; do
    [[ -r $file ]] || continue
    while read -r word number _; do
      [[ $word == "$name" ]] && COUNT=$number && return
    done 2>/dev/null <"$file"
  done
  return 1
}

oom_kills() { kernel_count oom_kill "${CGROUP[memory]-}"/memory.{events,oom_control}; }
forks_refused() { kernel_count max "${CGROUP[pids]-}/pids.events"; }
throttled() { kernel_count "$1" "${CGROUP[cpu]-}/cpu.stat"; }

# room_to_fork: whether the kernel allows another process. Where it does not, bash waits for a quarter of a minute.
room_to_fork() {
  local now=0 max=max
  [[ ${PARAM[held]} ]] || return 0
  { read -r max <"${CGROUP[pids]-}/pids.max"; } 2>/dev/null
  [[ $max && $max != *[!0-9]* ]] || return 0
  { read -r now <"${CGROUP[pids]-}/pids.current"; } 2>/dev/null
  ((now + 3 <= max))
}

# look_at_kernel: which limits that the kernel holds were touched since the last look.
look_at_kernel() {
  local periods
  if oom_kills && ((COUNT > OOM_KILLS)); then
    limit_hit memory "the kernel ended $((COUNT - OOM_KILLS)) of the run's processes for want of memory"
    OOM_KILLS=$COUNT MEMORY_HIT=yes BEAT_NEXT=0
  fi
  if forks_refused && ((COUNT > FORKS_REFUSED)); then
    [[ $PIDS_HIT ]] || limit_hit pids "the kernel refused a new process or thread: too many at once"
    FORKS_REFUSED=$COUNT PIDS_HIT=yes
    # Once is a tool's bad luck. Where it goes on, nothing works any more, the supervisor neither.
    if room_to_fork; then FULL_LOOKS=0; else FULL_LOOKS=$((FULL_LOOKS + 1)); fi
    ((FULL_LOOKS >= 3)) && end pids "the kernel allows no more processes and threads, and they are asked for all the time"
  fi
  if [[ ! $CPUS_HIT ]] && throttled nr_periods; then
    periods=$COUNT
    throttled nr_throttled || COUNT=$THROTTLED
    # A tenth of a second each: a fifth of them, in two seconds at least, is no chance.
    if ((periods - PERIODS >= 20 && (COUNT - THROTTLED) * 5 > periods - PERIODS)); then
      limit_hit cpus "slowed down in $((COUNT - THROTTLED)) of $((periods - PERIODS)) periods of 0.1 s"
      CPUS_HIT=yes
    fi
    ((periods - PERIODS < 20)) || PERIODS=$periods THROTTLED=$COUNT
  fi
  return 0
}

# judge_by_kernel: an agent that the kernel ended, or that could not go on, for want of memory or processes.
judge_by_kernel() {
  [[ ${PARAM[held]} ]] || return 0
  look_at_kernel
  [[ $STATE == failed && $REASON =~ ^(signal|no_result|spawn_error|exit_code)$ && ! $RESULT ]] || return 0
  if [[ $MEMORY_HIT && ($EXIT_CODE == 137 || $EXIT_CODE == 134) ]]; then
    REASON=memory DETAIL='the kernel ended the agent for want of memory'
  elif [[ $PIDS_HIT ]]; then
    REASON=pids DETAIL="ended with exit code $EXIT_CODE when the kernel refused it more processes"
  fi
}

# Sourced by the other scripts: clock, JSON strings, finding and ending the processes of a run.
# shellcheck shell=bash
LC_ALL=C
export LC_ALL
declare -A CGROUP=() # controller -> the run's own folder, where this process is in it: see scope.sh

# Set NOW (whole seconds) and NOW_EXACT (with a fraction where this bash has one).
clock() {
  NOW_EXACT=${EPOCHREALTIME-}
  if [[ $NOW_EXACT ]]; then
    NOW=${NOW_EXACT%.*}
  else
    printf -v NOW '%(%s)T' -1
    NOW_EXACT=$NOW
  fi
}

# json_string NAME TEXT: a JSON string literal of TEXT into the variable NAME. Bytes from 0x80 on pass through.
# Its own variables are named so that NAME can't be one of them.
json_string() {
  local _text=$2 _code _character _escape
  _text=${_text//\\/\\\\}
  _text=${_text//\"/\\\"}
  _text=${_text//$'\n'/\\n}
  _text=${_text//$'\r'/\\r}
  _text=${_text//$'\t'/\\t}
  if [[ $_text == *[$'\x01'-$'\x1f\x7f']* ]]; then
    for ((_code = 1; _code < 128; _code = _code == 31 ? 127 : _code + 1)); do
      printf -v _character '\\x%02x' "$_code"
      printf -v _character '%b' "$_character"
      [[ $_text == *"$_character"* ]] || continue
      printf -v _escape '\\u%04x' "$_code"
      _text=${_text//"$_character"/"$_escape"}
    done
  fi
  printf -v "$1" '"%s"' "$_text"
}

# read_pairs FILE: NUL-terminated strings of FILE into the array PAIRS; none where it is no plain file.
read_pairs() {
  local pair
  PAIRS=()
  plain "$1" || return 0
  while ((${#PAIRS[@]} < 10000)) && IFS= read -r -d '' pair; do PAIRS+=("$pair"); done <"$1"
}

# plain PATH: whether it is a file, and no link to one. What is none can hang whoever opens it, or lead elsewhere.
plain() { [[ -f $1 && ! -L $1 ]]; }

# clear_way PATH...: remove what was put where a file of ours is about to be written, unless it is a plain file.
clear_way() {
  local path
  for path; do
    plain "$path" || [[ ! -e $path && ! -L $path ]] || rm -rf -- "$path"
  done
}

# make_writable FOLDER: give its owner the right to write there, which an agent that is the owner can take away.
make_writable() { [[ -w $1 && -x $1 ]] || chmod u+rwx -- "$1" 2>/dev/null; }

# first_line FILE: up to 4000 bytes of a text's first line into LINE; nothing where it is no plain file. Stops at a NUL,
# of which a sparse file can hold any number.
first_line() {
  LINE=
  plain "$1" && IFS= read -r -d '' -n 4000 LINE <"$1"
  LINE=${LINE%%$'\n'*}
}

# read_meta RUN: what its .meta.json holds into META; nothing where that is no plain file or far too long.
read_meta() {
  META=
  plain "$1/.meta.json" && META=$(head -c 65536 -- "$1/.meta.json" 2>/dev/null | tr '\0' '?')
  ((${#META} < 65536)) || META=
}

# process_stat PID: state, parent, group, session, ... into the array STAT; fails when there is no such process.
# The name may hold anything, a newline and ") " too: cut at the last ") ", and read the whole file.
process_stat() {
  local whole=
  { IFS= read -r -d '' whole <"/proc/$1/stat"; } 2>/dev/null
  [[ $whole ]] || return 1
  # shellcheck disable=SC2206  # a letter and numbers; a here-string would be a file in older bash
  STAT=(${whole##*) })
}

# started_at PID: the start time in clock ticks after boot into START; with the pid it names one process for good.
started_at() {
  START=
  process_stat "$1" && [[ ${STAT[0]} != [ZX] ]] && START=${STAT[19]}
}

# boot_id: what changes when every process here has ended, into BOOT: the machine's boot, and the first process's start
# (a container's is restarted with it).
boot_id() {
  IFS= read -r BOOT </proc/sys/kernel/random/boot_id
  started_at 1
  BOOT+=.$START
}

# is_process PID START: whether exactly that process lives.
is_process() {
  # No =~ here: callers hold what it matched before.
  [[ $1 && $1 != *[!0-9]* && $2 && $2 != *[!0-9]* ]] || return 1
  started_at "$1"
  [[ $START == "$2" ]]
}

# pause SECONDS: wait without a process; fd 8 is a pipe that is open both ways.
pause() { read -r -t "$1" -u 8 REPLY || :; }

# scan RUN_ID SESSION ANCESTOR: every live process of the run into PIDS, and into THREADS how many threads they have.
# The union of three marks, because each can be shed: the id in the environment (env -i), the agent's session (setsid),
# descent from the supervisor or from any process with such a mark (a double fork). Where the run has a cgroup of its
# own, that is a fourth, which the supervisor has too.
#
# In a container that was made for the run there is nothing to shed: see scan_namespace.
#
# What sheds all of them escapes: `env -i setsid` whose parents have ended, where the supervisor is no subreaper (no perl,
# or another architecture than x86-64 and arm64) or has been killed. So does what was started by another's process
# (at, cron, systemd-run, docker run), and what another user owns is found but can't be signalled.
scan() {
  local run_id=$1 session=$2 ancestor=$3 entry pid up hops ours
  local -A parent=() found=() threads=()
  PIDS=() THREADS=0
  if [[ ${CODING_AGENT_OWN_NAMESPACE-} ]]; then
    scan_namespace "$ancestor"
    return
  fi
  # Where the kernel allows no other process, what it has in that cgroup is all that can be had.
  if [[ ${CGROUP[pids]-} ]] && ! room_to_fork; then
    scan_cgroup "${CGROUP[pids]}"
    return
  fi
  ((ancestor)) && found[$ancestor]=1
  for entry in /proc/[0-9]*; do
    pid=${entry#/proc/}
    process_stat "$pid" || continue
    [[ ${STAT[0]} == [ZX] ]] && continue
    parent[$pid]=${STAT[1]} threads[$pid]=${STAT[17]}
    ((session && STAT[3] == session)) && found[$pid]=1
  done
  while IFS= read -r entry; do
    mark_found "${entry//[!0-9]/}"
  done < <(exec grep -lsazx -- "CODING_AGENT_RUN_ID=$run_id" /proc/[0-9]*/environ)
  ours=$!
  while IFS= read -r entry; do
    pid=${entry//[!0-9]/}
    # Begun by the supervisor, these two are in its cgroup.
    [[ $pid == "$ours" || $pid == "$!" ]] || mark_found "$pid"
  done < <(exec grep -lsE -- "/coding-agent-${run_id}[.]scope(/|\$)" /proc/[0-9]*/cgroup)
  for pid in "${!parent[@]}"; do
    up=$pid
    # Read one after the other, parents can even form a circle.
    for ((hops = 0; up > 1 && hops < 5000; hops++)); do
      [[ ${found[$pid]-} ]] && break
      up=${parent[$up]-0}
      [[ ${found[$up]-} ]] && found[$pid]=1
    done
  done
  for pid in "${!found[@]}"; do
    [[ $pid == "$ancestor" || $pid == "$$" || $pid == "$BASHPID" ]] && continue
    PIDS+=("$pid")
    THREADS=$((THREADS + threads[$pid]))
  done
}

# mark_found PID: for scan. It may have begun since.
mark_found() {
  if [[ ! ${parent[$1]-} ]]; then
    process_stat "$1" && [[ ${STAT[0]} != [ZX] ]] || return 0
    parent[$1]=${STAT[1]} threads[$1]=${STAT[17]}
  fi
  found[$1]=1
}

# scan_cgroup FOLDER: scan in the run's own cgroup, without a fork; a little deeper, as its user may make more in it.
scan_cgroup() {
  local file pid
  for file in "$1"/cgroup.procs "$1"/*/cgroup.procs "$1"/*/*/cgroup.procs; do
    [[ -r $file ]] || continue
    while read -r pid; do
      [[ $pid == "$$" || $pid == "$BASHPID" ]] && continue
      process_stat "$pid" && [[ ${STAT[0]} != [ZX] ]] && PIDS+=("$pid") && THREADS=$((THREADS + STAT[17]))
    done 2>/dev/null <"$file"
  done
}

# scan_namespace ANCESTOR: scan in a process namespace that has only this run: whatever is this user's, but for the
# supervisor and for what came in from outside (a controller's call), whose ancestors have no parent here. Without a
# fork: where the limit of processes is reached there is none to be had.
scan_namespace() {
  local ancestor=$1 entry pid up hops line
  local -A parent=() spared=([$$]=1 [$BASHPID]=1) threads=()
  ((ancestor)) && spared[$ancestor]=1
  for entry in /proc/[0-9]*; do
    pid=${entry#/proc/}
    process_stat "$pid" && [[ ${STAT[0]} != [ZX] ]] || continue
    parent[$pid]=${STAT[1]} threads[$pid]=${STAT[17]}
  done
  if ((!ancestor)) && supervisors_here; then
    for pid in "${SUPERVISORS[@]}"; do spared[$pid]=1; done
  fi
  for pid in "${!parent[@]}"; do
    [[ ${spared[$pid]-} || $pid == 1 ]] && continue
    up=$pid
    for ((hops = 0; up > 1 && hops < 5000; hops++)); do up=${parent[$up]-0}; done
    ((up == 1)) || continue
    while IFS= read -r line; do
      # Real, effective, saved: another user's can't be the agent's, which can't become one.
      [[ $line == Uid:* ]] || continue
      [[ $line == *[$' \t']"$EUID"[$' \t']* ]] && PIDS+=("$pid") && THREADS=$((THREADS + threads[$pid]))
      break
    done 2>/dev/null <"/proc/$pid/status"
  done
}

# supervisors_here: every process that runs our script, without a fork, into SUPERVISORS.
supervisors_here() {
  local entry argv pid
  SUPERVISORS=()
  for entry in /proc/[0-9]*/cmdline; do
    mapfile -d '' -t -n 3 argv 2>/dev/null <"$entry" || continue
    [[ ${argv[1]-} == */supervise.sh ]] || continue
    pid=${entry#/proc/} pid=${pid%/cmdline}
    process_stat "$pid" && ((STAT[3] == pid)) && SUPERVISORS+=("$pid")
  done
  ((${#SUPERVISORS[@]}))
}

# look_again RUN_ID SESSION ANCESTOR: scan, but believe that nothing is left only when it is seen twice: what forks and
# ends between the list of processes and a look at it is seen neither as itself nor as its child.
look_again() {
  scan "$@"
  ((${#PIDS[@]})) || scan "$@"
}

# supervisors RUN: the processes that run our script for that folder into SUPERVISORS, not their subshells. From their
# arguments: the agent can write into the folder, and put another lock or another pid there.
supervisors() {
  local entry argv pid
  SUPERVISORS=()
  while IFS= read -r entry; do
    mapfile -d '' -t argv 2>/dev/null <"$entry"
    [[ ${argv[1]-} == */supervise.sh && ${argv[2]-} == "$1" ]] || continue
    pid=${entry#/proc/} pid=${pid%/cmdline}
    process_stat "$pid" && ((STAT[3] == pid && pid != $$)) && SUPERVISORS+=("$pid")
  done < <(grep -lsaxzF -- "$1" /proc/[0-9]*/cmdline)
  ((${#SUPERVISORS[@]}))
}

# end_stopped_supervisor RUN: one that was stopped can't obey.
end_stopped_supervisor() {
  local pid
  supervisors "$1" || return 0
  for pid in "${SUPERVISORS[@]}"; do
    process_stat "$pid" && [[ ${STAT[0]} == T ]] && kill -KILL "$pid" 2>/dev/null
  done
  return 0
}

# end_supervisor RUN: one that does not answer (stopped, or stuck on a dead disk), or that holds another lock.
end_supervisor() { ! supervisors "$1" || kill -KILL "${SUPERVISORS[@]}" 2>/dev/null || :; }

# end_processes RUN_ID SESSION ANCESTOR GRACE: TERM, up to GRACE seconds, then STOP and look again until the set is
# stable (a process that forks faster than it is found is stopped first), KILL, and look again. What could not be
# ended is left in PIDS.
end_processes() {
  local run_id=$1 session=$2 ancestor=$3 grace=$4 round count deadline
  look_again "$run_id" "$session" "$ancestor"
  ((${#PIDS[@]})) || return 0
  kill -TERM "${PIDS[@]}" 2>/dev/null
  clock
  for ((deadline = NOW + grace + 1; NOW < deadline; )); do
    pause 0.05
    clock
    look_again "$run_id" "$session" "$ancestor"
    ((${#PIDS[@]})) || return 0
  done
  for ((round = 0; round < 40; round++)); do
    count=-1
    while ((${#PIDS[@]} != count)); do
      count=${#PIDS[@]}
      ((count)) && kill -STOP "${PIDS[@]}" 2>/dev/null
      scan "$run_id" "$session" "$ancestor"
    done
    ((count)) || return 0
    kill -KILL "${PIDS[@]}" 2>/dev/null
    pause 0.05
    look_again "$run_id" "$session" "$ancestor"
    ((${#PIDS[@]})) || return 0
  done
  return 1
}

#!/usr/bin/env bash
# supervise.sh RUN: own the run in folder RUN from its start to its end. fd 9 is the held RUN/.lock, for this process
# alone; fd 7 is RUN/.lock.agent, which everything started here inherits: it stays held while anything of that lives.
# supervise.sh RUN end REASON: only write the end of a run whose supervisor is gone.
#
# stdin: the secrets, framed: a line with their number, then so many NUL-terminated NAME=VALUE. Nothing starts unless
# all of them came. They stay in this process and in the agent's environment.
#
# RUN holds, written by start.sh's caller: params, environment and argv (NUL-terminated), prompt.txt, setup/NN.sh,
# files/, repo.bundle and shallow. Written here: .meta.json, stream.jsonl, stderr.log, setup.log, workspace/, home/,
# save.git, work.patch, work.bundle.
set -u
here=${BASH_SOURCE[0]%/*}
# shellcheck source=common.sh
. "$here/common.sh"
# shellcheck source=workspace.sh
. "$here/workspace.sh"
# shellcheck source=scope.sh
. "$here/scope.sh"
# shellcheck source=kernel.sh
. "$here/kernel.sh"

WATCH_INTERVAL=2 # seconds between looks at memory and processes, where they have a limit; longer where a look is dear
LONGEST_PAUSE=4   # seconds that are added at the most
LONGEST_LOOK=90   # seconds that one round of looking may take; a longer one was a jump of the clock
PAGE_SIZE=$(getconf PAGESIZE)

declare -A PARAM=(
  [name]='' [kind]=agent [workdir]='' [branch]='' [repo]='' [repo_ref]='' [identity_name]='' [identity_email]=''
  [max_turns]=0 [timeout]=7200 [setup]=900 [first_event]=120 [idle]=1800 [linger]=10 [grace]=5
  [memory]=0 [disk]=0 [pids]=0 [cpus]=0 [held]='' [scope]='' [tick]=0.2 [heartbeat]=5 [created]=0 [attempt]=1
)
declare -A SEEN=()
STATE=starting STAGE=starting REASON='' DETAIL='' EXIT_CODE=null FINAL=false
AGENT=0 AGENT_START=0 SESSION=0 TURNS=0 SESSION_ID='' RESULT='' PARTIAL='' MORE='' LAST_EVENT=0 KILLS=0
STARTED_AT=null FIRST_EVENT_AT=null FIRST_TOOL_AT=null FINISHED_AT=null
WRITTEN='' FORGED='' UNSAVED=false
STOP='' OTHER_TIMEOUT='' LIMIT_HITS='' NOTICES='' HEAD_SHA='' BASE_SHA='' START_SHA='' OWN_WORKSPACE=true DISK_NEXT=0 WATCH_NEXT=0 BEAT_NEXT=0 KERNEL_NEXT=0

read_params() {
  local pair
  read_pairs "$RUN/params"
  for pair in "${PAIRS[@]}"; do
    # After the start the agent can write here, and bash would run what it finds in a number.
    [[ $pair == [a-z]*=* && ${pair%%=*} != *[!a-z_]* ]] || continue
    case ${PARAM[${pair%%=*}]-} in
      '' | agent) ;;
      *) [[ ${pair#*=} =~ ^(0|[1-9][0-9]{0,17})(\.[0-9]{1,9})?$ ]] || continue ;;
    esac
    PARAM[${pair%%=*}]=${pair#*=}
  done
  read_pairs "$RUN/environment"
  ENVIRONMENT=("${PAIRS[@]}")
  clock
  [[ ${PARAM[created]} == 0 ]] && PARAM[created]=$NOW_EXACT
  DEADLINE=$((NOW + ${PARAM[timeout]%.*}))
}

read_secrets() {
  local count pair
  SECRETS=()
  read -r count && [[ $count =~ ^[0-9]{1,4}$ ]] || return 1
  while ((count-- > 0)); do
    IFS= read -r -d '' pair && [[ ${pair%%=*} =~ ^[A-Za-z_][A-Za-z0-9_]*$ && $pair == *=* ]] || return 1
    SECRETS+=("$pair")
  done
}

# write_meta: the state of the run, atomically. A full disk keeps the old one (and is a limit that was hit).
write_meta() {
  local reason=null detail session task state
  local NOW NOW_EXACT # the loop's own time is taken by keep_time alone: a jump must not be met half-way
  in_place || return 0
  look_at_meta
  [[ $REASON ]] && json_string reason "$REASON"
  json_string detail "$DETAIL"
  json_string session "$SESSION_ID"
  json_string task "${PARAM[name]}"
  clock
  state="{\"version\":1,\"run_id\":\"${RUN##*/}\",\"name\":$task,\"kind\":\"${PARAM[kind]}\",\"attempt\":${PARAM[attempt]},"
  state+="\"state\":\"$STATE\",\"stage\":\"$STAGE\",\"final\":$FINAL,\"reason\":$reason,\"detail\":$detail,"
  state+="\"exit_code\":$EXIT_CODE,\"pid\":$AGENT,\"pid_start\":$AGENT_START,"
  state+="\"supervisor\":$$,\"supervisor_start\":${SUPERVISOR_START:-0},\"boot_id\":\"$BOOT\","
  state+="\"session_id\":$session,\"num_turns\":$TURNS,\"created_at\":${PARAM[created]},\"started_at\":$STARTED_AT,"
  state+="\"first_event_at\":$FIRST_EVENT_AT,\"first_tool_at\":$FIRST_TOOL_AT,\"finished_at\":$FINISHED_AT,"
  state+="\"unsaved\":$UNSAVED,\"heartbeat\":$NOW_EXACT,\"base\":\"$BASE_SHA\",\"head\":\"$HEAD_SHA\","
  state+="\"limit_hits\":[${LIMIT_HITS%,}],\"notices\":[${NOTICES%,}]}"
  room_to_fork || return 0 # rename is a process
  # In one piece: after several writes only the last one's failure would be seen.
  make_writable "$RUN"
  clear_way "$RUN/.meta.json.tmp" "$RUN/.meta.json"
  printf '%s\n' "$state" >"$RUN/.meta.json.tmp" && mv -f -- "$RUN/.meta.json.tmp" "$RUN/.meta.json" && WRITTEN=$state
} 2>/dev/null

# in_place: whether the run's folder, which this process stands in, is still where it was made: nothing is written into
# what somebody put in its place.
in_place() { [[ ! -L $RUN && $RUN -ef . ]]; }

# look_at_meta: notice where the state is not the one that was written.
look_at_meta() {
  local there=
  [[ $WRITTEN && ! $FORGED ]] || return 0
  plain "$RUN/.meta.json" && IFS= read -r -d '' -n 70000 there <"$RUN/.meta.json"
  [[ $there == "$WRITTEN"$'\n' ]] && return 0
  FORGED=yes
  notice '.meta.json was changed by somebody else, and written anew'
}

limit_hit() { # limit_hit LIMIT DETAIL
  local detail NOW NOW_EXACT
  clock
  json_string detail "$2"
  LIMIT_HITS+="{\"limit\":\"$1\",\"at\":$NOW_EXACT,\"detail\":$detail},"
}

# unsaved TEXT: of the agent's work something is on this machine alone.
unsaved() {
  UNSAVED=true
  notice "$1"
}

notice() {
  local text
  json_string text "$1"
  NOTICES+="$text,"
}

# spawn STDIN STDOUT STDERR COMMAND...: in the workspace, in a session of its own, with the run's environment alone.
spawn() {
  local in=$1 out=$2 err=$3 setsid
  shift 3
  setsid=$(type -P setsid)
  (
    exec 3<&- 8>&- 9>&-
    trap - HUP INT TERM PIPE
    umask 022
    cd -- "$WORKDIR" || exit 96
    exec <"$in" >>"$out" 2>>"$err" || exit 96
    # What the kernel ends for want of memory shall be a tool rather than the agent: bash reads this for each of them.
    [[ ${PARAM[held]} ]] && ENVIRONMENT=("BASH_ENV=$here/victim.sh" "${ENVIRONMENT[@]}")
    # shellcheck disable=SC2046  # names of variables hold no white space
    unset $(compgen -e)
    export "CODING_AGENT_RUN_ID=${RUN##*/}" "${ENVIRONMENT[@]}" "${SECRETS[@]}"
    exec "$setsid" "$@"
  ) &
  AGENT=$!
  SESSION=$AGENT
  started_at "$AGENT"
  AGENT_START=${START:-0}
}

# end REASON DETAIL: what shall end the run; the first one counts.
end() { [[ $STOP ]] || { STOP=$1 DETAIL=${2-}; }; }

# listen SECONDS: a tick; what came over RUN/.poke is obeyed.
listen() {
  local message=
  read -r -t "$1" -u 8 message || return 0
  case $message in
    'done') WORKING='' ;;
    'stop '*) end "${message#stop }" ;;
  esac
}

# look_for_timeout: another limit of time may be put into a file while the run goes on. Not a word over .poke: bash drops
# what it has read of a line when the time of a tick is over just then, and nobody would say it again.
look_for_timeout() {
  local seconds=
  plain "$RUN/.timeout" || return 0
  # Opened both ways, so that it can't block on a pipe that was put there since.
  { IFS= read -r -t 0.1 -n 10 seconds <>"$RUN/.timeout"; } 2>/dev/null
  [[ $seconds =~ ^[0-9]{1,9}$ && $seconds != "$OTHER_TIMEOUT" ]] || return 0
  OTHER_TIMEOUT=$seconds
  DEADLINE=$((${PARAM[created]%.*} + 10#$seconds))
}

# see_result LINE: the agent has its time to end from now on; reading up to here may have taken long.
see_result() {
  RESULT=$1
  keep_time
  RESULT_AT=$NOW
}

# read_stream: count turns and find the end in what the agent has written since. A turn is a distinct top-level message.
# MORE is set where there is more than can be read between two looks at the clock.
read_stream() {
  local line='' turn head tail lines=0
  MORE=''
  while [[ ! $MORE ]] && IFS= read -r -u 3 line; do
    ((++lines < 2000)) || MORE=yes
    if [[ $PARTIAL ]]; then
      line=$PARTIAL$line
      PARTIAL=
    fi
    LAST_EVENT=$NOW
    [[ $FIRST_EVENT_AT == null ]] && FIRST_EVENT_AT=$NOW_EXACT && BEAT_NEXT=0
    case ${line:0:60} in
      '{"type":"assistant"'*)
        # A subagent's message, or one that Claude Code made up itself to tell of an error, is no turn. A tool's input,
        # between what stands before the content and behind it, may have such names as well.
        head=${line:0:1000} tail=$line
        head=${head%%'"content":['*}
        ((${#line} > 3000)) && tail=${line: -3000}
        tail=${tail##*'"parent_tool_use_id":'}
        [[ $tail == '"'* || $head == *'"model":"<synthetic>"'* ]] && continue
        [[ $FIRST_TOOL_AT == null && $line == *'"type":"tool_use"'* ]] && FIRST_TOOL_AT=$NOW_EXACT && BEAT_NEXT=0
        [[ $head =~ \"id\":\"([A-Za-z0-9_-]+)\" ]] || continue
        turn=${BASH_REMATCH[1]}
        RESULT='' # after a result the session can go on, as when a task in the background has ended
        [[ ${SEEN[$turn]-} ]] || { SEEN[$turn]=1 TURNS=$((TURNS + 1)); }
        ;;
      '{"type":"system"'*)
        [[ ! $SESSION_ID && ${line:0:4000} =~ \"session_id\":\"([A-Za-z0-9_-]{1,100})\" ]] && SESSION_ID=${BASH_REMATCH[1]}
        ;;
      '{"type":"result"'*) see_result "$line" ;;
      '{"type":'*) ;;
      *) [[ $line == *'"type":"result"'* ]] && see_result "$line" ;;
    esac
    if ((PARAM[max_turns] > 0 && TURNS > PARAM[max_turns])); then
      end max_turns "turn $TURNS began; the limit is ${PARAM[max_turns]}"
      return
    fi
  done
  [[ $MORE ]] && return
  [[ $line ]] && LAST_EVENT=$NOW
  PARTIAL=$PARTIAL$line
}

# look_at_memory_and_pids: end the largest process but the agent first, as the kernel would; then the run.
look_at_memory_and_pids() {
  local pid resident shared total=0 largest=0 largest_pid=0 name=
  scan "${RUN##*/}" "$SESSION" "$$"
  if ((PARAM[pids] > 0 && THREADS > PARAM[pids])); then
    end pids "$THREADS processes and threads; the limit is ${PARAM[pids]}"
  fi
  ((PARAM[memory] > 0)) || return 0
  for pid in "${PIDS[@]}"; do
    read -r _ resident shared _ 2>/dev/null <"/proc/$pid/statm" || continue
    resident=$(((resident - shared) * PAGE_SIZE))
    total=$((total + resident))
    ((pid != AGENT && resident > largest)) && largest=$resident largest_pid=$pid
  done
  ((total > PARAM[memory])) || return 0
  if ((largest_pid == 0 || total - largest > PARAM[memory] || KILLS >= 20)); then
    end memory "$((total / 1000000)) MB in use; the limit is $((PARAM[memory] / 1000000)) MB"
    return 0
  fi
  IFS= read -r name 2>/dev/null <"/proc/$largest_pid/comm"
  kill -KILL "$largest_pid" 2>/dev/null && KILLS=$((KILLS + 1))
  limit_hit memory "${name:-a process} of $((largest / 1000000)) MB ended; the limit is $((PARAM[memory] / 1000000)) MB"
  BEAT_NEXT=0
}

look_at_disk() {
  local used took=$SECONDS
  used=$(timeout 60 du -sk -- "$RUN" 2>/dev/null)
  used=${used%%[!0-9]*}
  took=$((SECONDS - took))
  DISK_NEXT=$((NOW + 3 + took * 50)) # a large tree is looked at less often
  if [[ $used ]] && ((used * 1024 > PARAM[disk])); then
    end disk "$((used * 1024 / 1000000)) MB on disk; the limit is $((PARAM[disk] / 1000000)) MB"
  fi
}

# transcript_grew: whether the session has gone on, within the limit, although its stdout is silent.
transcript_grew() {
  local changed
  while IFS=. read -r changed _; do
    ((changed >= LAST_EVENT)) && LAST_EVENT=$((changed + 1))
  done < <(find "$RUN/home/projects" -name '*.jsonl' -newermt "@$LAST_EVENT" -printf '%T@\n' 2>/dev/null)
  ((NOW - LAST_EVENT <= ${PARAM[idle]%.*}))
}

look_at_limits() {
  local began ended took
  look_for_timeout
  ((NOW > DEADLINE)) && end timeout "after $((NOW - ${PARAM[created]%.*})) seconds"
  [[ ${PARAM[held]} && $NOW -ge $KERNEL_NEXT ]] && { KERNEL_NEXT=$((NOW + 1)); look_at_kernel; }
  if ((PARAM[disk] > 0 && NOW >= DISK_NEXT)); then look_at_disk; fi
  if ((PARAM[memory] + PARAM[pids] > 0 && NOW >= WATCH_NEXT)); then
    began=${EPOCHREALTIME-0.0}
    look_at_memory_and_pids
    # A look costs what the machine has processes: under 1% of the time, as far as limits still mean something.
    ended=${EPOCHREALTIME-0.0}
    took=$(((10#${ended/./} - 10#${began/./}) / 8000)) # seconds
    WATCH_NEXT=$((NOW + WATCH_INTERVAL + (took > LONGEST_PAUSE ? LONGEST_PAUSE : took)))
  fi
  if ((NOW >= BEAT_NEXT)); then
    BEAT_NEXT=$((NOW + PARAM[heartbeat]))
    write_meta || { [[ $LIMIT_HITS == *'no space'* ]] || limit_hit disk 'no space left to write the state of the run'; }
  fi
}

look_at_agent() {
  if [[ $RESULT ]]; then
    ((NOW - RESULT_AT > ${PARAM[linger]%.*})) && end lingering_after_result "${PARAM[linger]} seconds after its result"
  elif [[ $FIRST_EVENT_AT == null ]]; then
    ((NOW - STAGE_BEGAN > ${PARAM[first_event]%.*})) && end no_first_event "nothing within ${PARAM[first_event]} seconds"
  elif ((NOW - LAST_EVENT > ${PARAM[idle]%.*})) && ! transcript_grew; then
    end idle "no event for $((NOW - LAST_EVENT)) seconds"
  fi
}

# keep_time: take the time. Where it jumped since the last look (the machine slept, or its clock was set), what is
# measured by it moves along: nobody has lost time in which he did not run.
keep_time() {
  local gap name
  clock
  gap=$((NOW - ${LAST_LOOK:-$NOW}))
  LAST_LOOK=$NOW
  ((gap < 0 || gap > LONGEST_LOOK)) || return 0
  for name in DEADLINE LAST_EVENT STAGE_BEGAN RESULT_AT SETUP_BEGAN DISK_NEXT WATCH_NEXT KERNEL_NEXT BEAT_NEXT; do
    printf -v "$name" %d "$((${!name:-0} + gap))"
  done
}

# watch: until the process started by spawn has ended or has to. EXIT_CODE is its own, when it ended by itself.
watch() {
  local alive=1 tick=${PARAM[tick]}
  clock
  STAGE_BEGAN=$NOW LAST_EVENT=$NOW
  while :; do
    keep_time
    kill -0 "$AGENT" 2>/dev/null || alive=0
    [[ $STAGE == agent ]] && read_stream
    [[ $STOP ]] && break
    ((alive)) || [[ $MORE ]] || break
    look_at_limits
    case $STAGE in
      agent) look_at_agent ;;
      setup) ((NOW - SETUP_BEGAN > ${PARAM[setup]%.*})) && end setup_timeout "after ${PARAM[setup]} seconds" ;;
    esac
    [[ $STOP ]] && break
    # Near the turn limit look more often, so that the next turn's tools don't get far.
    if ((PARAM[max_turns] > 0 && TURNS >= PARAM[max_turns])); then tick=0.05; fi
    if [[ $MORE ]]; then listen 0.001; else listen "$tick"; fi
  done
  if ((!alive)); then
    wait "$AGENT"
    EXIT_CODE=$?
  fi
}

# meanwhile COMMAND...: in a subshell, while limits hold and requests are obeyed. Its exit code; 1 where the run has to
# end. What the command does to variables is lost.
meanwhile() {
  local worker WORKING=yes
  { "$@"; REPLY=$?; printf 'done\n' 1<>"$RUN/.poke"; exit "$REPLY"; } 8>&- 9>&- &
  worker=$!
  while [[ $WORKING ]] && kill -0 "$worker" 2>/dev/null; do
    keep_time
    look_at_limits
    [[ $STOP ]] && return 1
    listen "${PARAM[tick]}"
  done
  wait "$worker"
}

run_setup() {
  local script
  STAGE=setup
  clock
  SETUP_BEGAN=$NOW
  for script in "$RUN"/setup/*.sh; do
    [[ -f $script ]] || continue
    printf -- '--- %s\n' "${script##*/}" >>"$RUN/setup.log"
    spawn /dev/null "$RUN/setup.log" "$RUN/setup.log" bash "$script"
    watch
    [[ $STOP ]] && return 1
    if ((EXIT_CODE != 0)); then
      script=${script##*/}
      end setup_failed "setup command $((10#${script%.sh} + 1)) ended with exit code $EXIT_CODE"
      return 1
    fi
  done
  EXIT_CODE=null
}

# json_field NAME: the value of a top-level field of the result event into VALUE. Inside a JSON string every quote is
# escaped, so the pattern can't match text; the input of a denied tool call, which may have any field, comes earlier.
json_field() {
  VALUE=
  [[ $RESULT =~ .*\"$1\":(\"([^\"\\]*)\"|true|false|null|-?[0-9.]+) ]] || return 1
  VALUE=${BASH_REMATCH[2]:-${BASH_REMATCH[1]}}
}

# judge: STATE and REASON of an agent that ended by itself. By is_error and the exit code, never by subtype success.
judge() {
  local failed subtype
  STATE=failed
  if [[ ${PARAM[kind]} == command ]]; then
    if [[ $EXIT_CODE == 0 ]]; then STATE=succeeded; else REASON=exit_code; fi
  elif [[ ! $RESULT ]]; then
    case $EXIT_CODE in
      96 | 126 | 127) REASON=spawn_error ;;
      129 | 13[0-9] | 14[0-9]) REASON=signal DETAIL="ended by signal $((EXIT_CODE - 128))" ;;
      *) REASON=no_result ;;
    esac
  else
    json_field is_error && failed=$VALUE
    json_field subtype && subtype=$VALUE
    if [[ ${failed-} == false && ($EXIT_CODE == 0 || $REASON == lingering_after_result) ]]; then
      if ((TURNS == 0)) && [[ $RESULT == *'"modelUsage":{}'* ]]; then
        REASON=model_not_asked DETAIL='Claude Code takes a prompt that begins with / and a name it knows as a command to itself'
        return
      fi
      STATE=succeeded
      return
    fi
    case ${subtype-} in
      error_max_turns) REASON=max_turns ;;
      error_max_budget_usd) REASON=budget ;;
      success | '')
        json_field terminal_reason
        case $VALUE in '' | completed | null) REASON=exit_code ;; *) REASON=$VALUE ;; esac
        ;;
      *) REASON=$subtype ;;
    esac
  fi
}

conclude() {
  case $STOP in
    '')
      judge
      judge_by_kernel
      ;;
    timeout) STATE=timed_out REASON=timeout ;;
    killed) STATE=killed REASON=killed ;;
    lingering_after_result)
      REASON=lingering_after_result
      judge
      ;;
    lost) STATE=lost REASON=$DETAIL DETAIL='' ;;
    *) STATE=failed REASON=$STOP ;;
  esac
  # The stream and .poke are the agent's to write.
  [[ $REASON =~ ^[A-Za-z0-9_.-]{0,100}$ ]] || REASON=unknown
}

# finish: end every process, save the work, write the end. Whatever fails on the way, the end is written.
finish() {
  local final_state final_reason until
  conclude
  # Until the work is saved the run is not over for those who look.
  final_state=$STATE final_reason=$REASON
  STATE=running REASON='' STAGE=ending
  ((AGENT)) || STATE=starting
  # Without room for a process nothing else can be done.
  room_to_fork || end_processes "${RUN##*/}" "$SESSION" "$$" 0
  write_meta
  end_processes "${RUN##*/}" "$SESSION" "$$" "${PARAM[grace]%.*}" || notice "processes that could not be ended: ${PIDS[*]}"
  if [[ ${PARAM[kind]} == agent && -e /dev/fd/3 ]]; then
    MORE=yes until=$((SECONDS + 20))
    while [[ $MORE ]] && ((SECONDS < until)); do read_stream; done 2>/dev/null
  fi
  rm -f -- "$RUN/.ballast"
  STAGE=saving
  write_meta
  save_work
  # Of a full disk the saving may have taken all that the first ballast gave back.
  rm -f -- "$RUN/.ballast.end"
  STATE=$final_state REASON=$final_reason STAGE=ended FINAL=true
  clock
  FINISHED_AT=$NOW_EXACT
  write_meta || { rm -rf -- "$RUN/save.git"; write_meta; }
}

run_agent() {
  local argv
  read_pairs "$RUN/argv"
  argv=("${PAIRS[@]}")
  STAGE=agent STATE=running
  clock
  STARTED_AT=$NOW_EXACT
  clear_way "$RUN/stream.jsonl" "$RUN/stderr.log" "$RUN/output.log" # a setup command may have been hostile
  if [[ ${PARAM[kind]} == agent ]]; then
    begin_stream
    spawn "$RUN/prompt.txt" "$RUN/stream.jsonl" "$RUN/stderr.log" "${argv[@]}"
  else
    STAGE='command'
    spawn /dev/null "$RUN/output.log" "$RUN/output.log" "${argv[@]}"
  fi
  write_meta
  watch
}

# begin_stream: fd 3 reads what is written from now on. Of another attempt the stream goes on where the last one ended.
begin_stream() {
  local size
  if ((PARAM[attempt] == 1)); then
    : >"$RUN/stream.jsonl"
    exec 3<"$RUN/stream.jsonl"
    return
  fi
  # The last attempt may have been cut in the middle of a line.
  printf '\n{"type":"coding-agent","subtype":"attempt","attempt":%d}\n' "${PARAM[attempt]}" >>"$RUN/stream.jsonl"
  size=$(stat -c %s -- "$RUN/stream.jsonl")
  exec 3<"$RUN/stream.jsonl"
  head -c "$size" <&3 >/dev/null
}

# take_workspace: of another attempt: what the last one has left.
take_workspace() {
  find_workspace
  STAGE=workspace
  [[ -d $WORKDIR ]] || { end workdir_missing "$WORKDIR, where the agent was, is no folder any more"; return 1; }
  BASE_SHA=$(saved_commit base) START_SHA=$(saved_commit start)
  return 0 # without git there are none
}

# make_ready: everything before the agent.
make_ready() {
  if ((PARAM[attempt] > 1)); then
    take_workspace
    return
  fi
  make_workspace && { run_setup || [[ $STOP ]]; } && [[ ! $STOP ]] || return 1
  meanwhile save_base
  START_SHA=$(saved_commit start)
  return 0
}

main() {
  RUN=$1
  umask 077
  cd -- "$RUN" || exit 97
  trap : HUP INT PIPE
  trap 'end killed "the supervisor was asked to end"' TERM
  rm -rf -- "$RUN/.poke"
  mkfifo -m 600 "$RUN/.poke" && exec 8<>"$RUN/.poke" || exit 97
  boot_id
  started_at $$
  SUPERVISOR_START=$START
  read_params
  if [[ ${2-} == end ]]; then
    finish_for_the_dead "$3"
    return
  fi
  read_secrets || { echo "the secrets did not arrive whole; nothing was started" >&2; exit 98; }
  exec </dev/null 7>>"$RUN/.lock.agent"
  flock 7 # somebody who looks may hold it for a moment
  head -c 65536 /dev/zero >"$RUN/.ballast"
  head -c 16384 /dev/zero >"$RUN/.ballast.end"
  find_limits
  write_meta || exit 97
  if make_ready && [[ ! $STOP ]]; then run_agent; fi
  finish
  [[ ! ${PARAM[scope]} ]] || leave_cgroups
}

# finish_for_the_dead REASON: the supervisor is gone. Its last .meta.json tells what was known; nothing of it is trusted
# beyond the numbers in it.
finish_for_the_dead() {
  local old time='([1-9][0-9]{0,9}(\.[0-9]{1,9})?)[,}]'
  read_meta "$RUN"
  old=$META
  [[ $old =~ \"started_at\":$time ]] && STARTED_AT=${BASH_REMATCH[1]}
  [[ $old =~ \"first_event_at\":$time ]] && FIRST_EVENT_AT=${BASH_REMATCH[1]}
  [[ $old =~ \"first_tool_at\":$time ]] && FIRST_TOOL_AT=${BASH_REMATCH[1]}
  [[ $old =~ \"created_at\":$time ]] && PARAM[created]=${BASH_REMATCH[1]}
  BASE_SHA=$(saved_commit base) START_SHA=$(saved_commit start)
  # The pid of a process that has ended, or one that the agent wrote there, can be anybody's, and so can its session.
  if [[ $old =~ \"pid\":([0-9]+),\"pid_start\":([0-9]+) ]] && is_process "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}" &&
    grep -qsazx -- "CODING_AGENT_RUN_ID=${RUN##*/}" "/proc/${BASH_REMATCH[1]}/environ"; then
    AGENT=${BASH_REMATCH[1]} AGENT_START=${BASH_REMATCH[2]}
    ((STAT[3] == AGENT)) && SESSION=$AGENT
  fi
  find_workspace
  PARAM[max_turns]=0
  if plain "$RUN/stream.jsonl"; then
    # The agent may have made it seem endless: bash would read the holes of a sparse file for hours.
    rm -rf -- "$RUN/.stream"
    head -c 200000000 -- "$RUN/stream.jsonl" | tr -d '\0' >"$RUN/.stream"
    exec 3<"$RUN/.stream"
    rm -f -- "$RUN/.stream"
    clock
  fi
  [[ $1 == killed ]] && STOP=killed
  [[ $1 == killed ]] || STOP=lost DETAIL=$1
  finish
}

main "$@"
exit

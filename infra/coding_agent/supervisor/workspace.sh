# Sourced by supervise.sh: the checkout, and saving what the agent changed in it.
#
# git inside the agent's workspace would run the agent's hooks, filters and fsmonitor. So saves go through a git dir of
# our own (save.git) that knows the workspace only as a work tree, with no configuration but its own. They carry the
# run's id, so that they are found should the supervisor be killed.
# shellcheck shell=bash disable=SC2153,SC2034

LARGEST_FILE=256000000 # bytes; larger ones are in no patch
SAVE_TIMEOUT=600 # seconds, for each git command that makes or saves a workspace

quiet_git() {
  CODING_AGENT_RUN_ID=${RUN##*/} GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null GIT_TERMINAL_PROMPT=0 \
    timeout -k 5 "$SAVE_TIMEOUT" git -c core.hooksPath=/dev/null -c core.fsmonitor=false -c gc.auto=0 -c advice.detachedHead=false "$@" 8>&- 9>&-
}

SAVE_GIT=save.git # in RUN

save_git() { quiet_git --git-dir="$RUN/$SAVE_GIT" "$@"; }

# find_workspace: set WORKSPACE (what is saved) and WORKDIR (where the agent runs).
find_workspace() {
  WORKSPACE=$RUN/workspace
  case ${PARAM[workdir]} in
    '') WORKDIR=$WORKSPACE ;;
    /*) OWN_WORKSPACE=false WORKDIR=${PARAM[workdir]} WORKSPACE= ;;
    *) WORKDIR=$WORKSPACE/${PARAM[workdir]} ;;
  esac
}

make_workspace() {
  find_workspace
  STAGE=workspace
  mkdir -p -- "$RUN/home" "$RUN/tmp"
  if [[ $OWN_WORKSPACE == false ]]; then
    [[ -d $WORKDIR ]] || { end workdir_missing "$WORKDIR is no folder on this machine"; return 1; }
    return 0
  fi
  umask 022 # the run's folder is closed to others; inside, files are made as the user expects them
  mkdir -p -- "$WORKSPACE" || { end workspace_failed "$WORKSPACE can't be made"; return 1; }
  if [[ ${PARAM[repo]} ]]; then
    meanwhile check_out >>"$RUN/setup.log" 2>&1 ||
      { end workspace_failed "the checkout failed: $(why_git_failed)"; return 1; }
    BASE_SHA=$(save_git rev-parse --verify -q refs/coding-agent/base)
  fi
  if [[ -d $RUN/files ]]; then
    cp -R -p -- "$RUN/files/." "$WORKSPACE/" 2>>"$RUN/setup.log" || { end workspace_failed "files can't be copied"; return 1; }
  fi
  if [[ ${PARAM[workdir]} ]]; then
    mkdir -p -- "$WORKDIR" || { end workdir_missing "${PARAM[workdir]} can't be made in the workspace"; return 1; }
  fi
  umask 077
}

# why_git_failed: git's reason, before which and after which it gives advice.
why_git_failed() {
  local said
  said=$(grep -aE '^(fatal|error|remote): ' -- "$RUN/setup.log" | tail -n 3)
  printf %s "${said:-$(tail -n 3 -- "$RUN/setup.log")}" | head -c 600
}

# check_out: the repository arrives in save.git; the workspace's own .git gets the same objects as hard links, so that
# the base outlives whatever the agent does to it.
check_out() {
  local ref=${PARAM[repo_ref]:-HEAD} source=${PARAM[repo]} objects=$WORKSPACE/.git base
  quiet_git init -q --bare --template= "$RUN/save.git" || return 1
  [[ -f $RUN/shallow ]] && cp -- "$RUN/shallow" "$RUN/save.git/shallow"
  if [[ $source == bundle ]]; then
    source=$RUN/repo.bundle
    save_git fetch -q --no-tags "$source" "+$ref:refs/coding-agent/base" || return 1
  else
    # Another's server: the user's own git configuration (credential helpers, proxies) has to work here.
    CODING_AGENT_RUN_ID=${RUN##*/} GIT_TERMINAL_PROMPT=0 timeout -k 5 "$SAVE_TIMEOUT" git --git-dir="$RUN/save.git" -c core.hooksPath=/dev/null \
      fetch --no-tags "$source" "+$ref:refs/coding-agent/base" 8>&- 9>&- || return 1
  fi
  base=$(save_git rev-parse --verify 'refs/coding-agent/base^{commit}') || return 1
  save_git update-ref refs/coding-agent/base "$base" || return 1
  # What is tracked is saved although .gitignore names it: with an empty index it would not be.
  GIT_INDEX_FILE=$RUN/save.git/index save_git read-tree "$base" || return 1
  quiet_git init -q --template= "$WORKSPACE" || return 1
  cp -a -l -- "$RUN/save.git/objects/." "$objects/objects/" 2>/dev/null ||
    cp -a -- "$RUN/save.git/objects/." "$objects/objects/" || return 1
  [[ -f $RUN/save.git/shallow ]] && cp -- "$RUN/save.git/shallow" "$objects/shallow"
  quiet_git -C "$WORKSPACE" update-ref "refs/heads/${PARAM[branch]}" "$base" || return 1
  quiet_git -C "$WORKSPACE" symbolic-ref HEAD "refs/heads/${PARAM[branch]}" || return 1
  quiet_git -C "$WORKSPACE" reset -q --hard || return 1
  if [[ ${PARAM[repo]} != bundle ]]; then quiet_git -C "$WORKSPACE" remote add origin "${PARAM[repo]}"; fi
  quiet_git -C "$WORKSPACE" config user.name "${PARAM[identity_name]:-coding-agent}"
  quiet_git -C "$WORKSPACE" config user.email "${PARAM[identity_email]:-coding-agent@localhost}"
  rm -f -- "$RUN/repo.bundle"
}

# snapshot: the workspace as a tree in save.git; its id into TREE. Without files that no patch takes: a sparse one of
# 50 GB would keep git busy for hours. LARGE is how many they are.
snapshot() {
  local paths=(.) path
  TREE='' LARGE=0 LEFT_OUT=''
  while ((LARGE < 1000)) && IFS= read -r -d '' path; do
    LARGE=$((LARGE + 1))
    paths+=(":(exclude,top,literal)${path#./}")
  done < <(cd -- "$WORKSPACE" && timeout 60 find . -xdev -path ./.git -prune -o -type f -size "+${LARGEST_FILE}c" -print0)
  export GIT_INDEX_FILE=$RUN/$SAVE_GIT/index
  # One path that git can't take must not keep the others out.
  save_git --work-tree="$WORKSPACE" -c core.excludesFile= -c core.autocrlf=false -c core.protectNTFS=false \
    add -A --ignore-errors -- "${paths[@]}" >/dev/null || LEFT_OUT=yes
  TREE=$(save_git write-tree)
  unset GIT_INDEX_FILE
  [[ $TREE ]]
}

# save_base: what the workspace holds when the agent starts, so that the patch is what the agent changed.
save_base() {
  [[ $OWN_WORKSPACE == true ]] || return 0
  type -P git >/dev/null || return 0
  [[ -d $RUN/save.git ]] || quiet_git init -q --bare --template= "$RUN/save.git" || return 0
  snapshot && save_git update-ref refs/coding-agent/start "$(save_git -c user.name=coding-agent \
    -c user.email=coding-agent@localhost commit-tree "$TREE" -m start)"
}

# saved_commit NAME: the commit under that name in save.git, as text.
saved_commit() {
  first_line "$RUN/save.git/refs/coding-agent/$1"
  [[ $LINE =~ ^[0-9a-f]{40}([0-9a-f]{24})?$ ]] && printf %s "$LINE"
}

# renew_save_git: go on with a new git dir that takes nothing of save.git but objects and the index. The agent could
# write there, too, and git runs what it finds configured.
renew_save_git() {
  local old=$RUN/save.git new=$RUN/.save.git
  [[ -d $old && ! -L $old && -d $old/objects && ! -L $old/objects ]] || return 1
  rm -rf -- "$new"
  quiet_git init -q --bare --template= "$new" || return 1
  timeout 60 find "$old/objects" "$WORKSPACE/.git/objects" -xdev -type p -delete
  export GIT_ALTERNATE_OBJECT_DIRECTORIES=$old/objects
  plain "$RUN/shallow" && { cp -- "$RUN/shallow" "$new/shallow" || return 1; }
  SAVE_GIT=.save.git
  if plain "$old/index"; then
    cp -p -- "$old/index" "$new/index" # its time tells git which files were changed too soon after it to be sure
  elif [[ $START_SHA ]]; then
    GIT_INDEX_FILE=$new/index save_git read-tree "$START_SHA"
  fi
}

# workspace_head: the commit the agent's checkout stands on, into HEAD_SHA, read as text: git there is the agent's.
workspace_head() {
  local git=$WORKSPACE/.git head line
  HEAD_SHA=
  [[ -d $git && ! -L $git ]] || return 1
  first_line "$git/HEAD"
  head=$LINE
  if [[ $head == 'ref: refs/'* ]]; then
    head=${head#ref: }
    [[ $head == *..* ]] && return 1
    if plain "$git/$head"; then
      first_line "$git/$head"
      head=$LINE
    elif plain "$git/packed-refs"; then
      while IFS= read -r -n 4096 line; do
        [[ $line == *" $head" ]] && head=${line%% *} && break
      done < <(head -c 50000000 -- "$git/packed-refs" | grep -aF -- " $head")
    fi
  fi
  [[ $head =~ ^[0-9a-f]{40}([0-9a-f]{24})?$ ]] && HEAD_SHA=$head
}

# other_tips: the commits that the checkout's branches and its stash name into TIPS, read as text, too.
other_tips() {
  local git=$WORKSPACE/.git file sha ref
  TIPS=()
  while ((${#TIPS[@]} < 200)) && IFS= read -r -d '' file; do
    first_line "$file"
    [[ $LINE =~ ^[0-9a-f]{40}([0-9a-f]{24})?$ ]] && TIPS+=("$LINE")
  done < <(timeout 60 find "$git/refs/heads" "$git/refs/stash" -xdev -type f -print0 2>/dev/null)
  plain "$git/packed-refs" || return 0
  while ((${#TIPS[@]} < 200)) && read -r sha ref; do
    [[ -e $git/$ref || ! $sha =~ ^[0-9a-f]{40}([0-9a-f]{24})?$ ]] || TIPS+=("$sha")
  done < <(head -c 50000000 -- "$git/packed-refs" | grep -aE '^[0-9a-f]+ refs/(heads/|stash$)' | cut -c1-1000)
}

save_bundle() {
  if ! workspace_head; then
    [[ $BASE_SHA ]] && unsaved "the checkout's HEAD names no commit: commits that the agent made are not saved as such"
    return 0
  fi
  local -x GIT_ALTERNATE_OBJECT_DIRECTORIES=$GIT_ALTERNATE_OBJECT_DIRECTORIES:$WORKSPACE/.git/objects
  local range=(refs/coding-agent/work) others=0 tip
  other_tips
  for tip in "${TIPS[@]}"; do
    save_git merge-base --is-ancestor "$tip" "$HEAD_SHA"
    (($? == 1)) && others=$((others + 1))
  done
  ((others)) && unsaved "branches or stashes whose commits did not come along: $others"
  [[ $HEAD_SHA == "$BASE_SHA" ]] && return 0
  save_git update-ref refs/coding-agent/work "$HEAD_SHA" || return 1
  [[ $BASE_SHA ]] && range+=("^$BASE_SHA")
  save_git bundle create -q "$RUN/work.bundle.tmp" "${range[@]}" && mv -f -- "$RUN/work.bundle.tmp" "$RUN/work.bundle"
}

save_patch() {
  local nested start
  snapshot || return 1
  # How many, not which: names are the agent's to choose, and .meta.json holds nothing secret. The patch has them.
  nested=$(save_git ls-tree -r "$TREE" | grep -ac '^160000 ')
  [[ $LEFT_OUT ]] && unsaved 'files that git could not read or name, which are not in the patch'
  ((nested)) && unsaved "nested repositories whose contents are not in the patch: $nested"
  ((LARGE)) && unsaved "files of over $((LARGEST_FILE / 1000000)) MB that are not in the patch: $LARGE"
  start=$(save_git rev-parse --verify -q "$START_SHA^{tree}") || start=$(save_git mktree </dev/null)
  save_git diff --binary --full-index --no-color --no-ext-diff --no-textconv --no-renames "$start" "$TREE" \
    >"$RUN/work.patch.tmp" && mv -f -- "$RUN/work.patch.tmp" "$RUN/work.patch"
}

# save_work: at every end, good or bad. Where there is no git, everything as a tar.
save_work() {
  [[ $OWN_WORKSPACE == true ]] || return 0
  if [[ ! -d $WORKSPACE || -L $WORKSPACE ]] || ! in_place; then
    [[ $STARTED_AT == null ]] || unsaved 'the workspace is no longer where it was made: nothing is saved'
    return 0
  fi
  # What is written below may neither follow a link that was put there nor wait for a reader.
  rm -rf -- "$RUN"/work.*
  timeout 60 find "$WORKSPACE" -xdev -type p -delete
  if ! type -P git >/dev/null; then
    tar -cf "$RUN/work.tar.tmp" -C "$WORKSPACE" . || unsaved 'files that tar could not read, which were not saved'
    mv -f -- "$RUN/work.tar.tmp" "$RUN/work.tar"
    return 0
  fi
  [[ -e $RUN/save.git ]] || return 0
  renew_save_git || { unsaved 'where the work is saved was destroyed: nothing is saved'; return 0; }
  save_bundle || unsaved 'the commits could not be saved as a bundle'
  save_patch || unsaved 'the changes could not be saved as a patch'
  rm -rf -- "$RUN"/work.*.tmp "${RUN:?}/$SAVE_GIT"
}

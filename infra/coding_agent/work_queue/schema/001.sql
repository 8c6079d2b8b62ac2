-- The queue: tasks, the executors' slots that they wait for, and the workers that run them.

CREATE TABLE worker (
  id text PRIMARY KEY,
  machine text NOT NULL,            -- whose files it has: a machine and a state folder there
  store text NOT NULL,              -- where the stacks are that it works with: on its machine, or a shared backend
  host text NOT NULL,
  pid int NOT NULL,
  begun bigint NOT NULL,            -- when its process did, in its machine's clock ticks
  serves text[] NOT NULL,           -- keys of executors
  started_at timestamptz NOT NULL DEFAULT now(),
  seen_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE executor (
  key text PRIMARY KEY,             -- the name; with the machine where it is another place on another
  name text NOT NULL,
  rank int NOT NULL,                -- its place in the executors file
  labels text[] NOT NULL,
  max_tasks int NOT NULL,
  gpus int NOT NULL
);

-- A claim of a slot is this row with a task in it: taken in a transaction, let go once the run is known to have ended.
CREATE TABLE slot (
  executor text NOT NULL REFERENCES executor (key),
  kind text NOT NULL CHECK (kind IN ('run', 'gpu')),
  index int NOT NULL,
  task text,
  PRIMARY KEY (executor, kind, index)
);
CREATE INDEX slot_of_task ON slot (task) WHERE task IS NOT NULL;

CREATE TABLE task (
  id text PRIMARY KEY,
  name text NOT NULL,
  fields jsonb NOT NULL,            -- the task, as its file says it; without any secret's value
  repo jsonb,                       -- null; a folder of `machine`; or an address and what of it
  file text,                        -- the task's file in a project of `machine`, where it is not dispatched by itself
  digest text NOT NULL,             -- of the task alone, whichever executor takes it
  executor text,                    -- a name; null: any that carries the labels
  labels text[] NOT NULL,
  gpus int NOT NULL DEFAULT 0,
  priority int NOT NULL DEFAULT 0,
  not_before timestamptz NOT NULL DEFAULT now(),
  retries int NOT NULL,             -- how often it may be run again after a failure that is worth it
  backoff real NOT NULL,            -- seconds until the first of them; twice as long before each next
  enqueued_at timestamptz NOT NULL DEFAULT now(),
  machine text,                     -- which alone has its files; null: it needs none
  store text,                       -- where its stack is; null: nowhere yet
  state text NOT NULL DEFAULT 'queued',
  reason text,
  detail text,
  wanted text NOT NULL DEFAULT 'run' CHECK (wanted IN ('run', 'killed', 'destroyed')),
  discard boolean NOT NULL DEFAULT false,
  attempt int NOT NULL DEFAULT 0,
  run_id text,                      -- of this attempt; chosen before anything can start
  worker text,
  taken text,                       -- the key of the executor whose slot it has
  record jsonb,                     -- what is known of the run, for other machines
  resume jsonb,                     -- another attempt of its run is to be made: its number, and what the agent is told
  claimed_at timestamptz,
  finished_at timestamptz
);
CREATE INDEX task_waiting ON task (priority DESC, enqueued_at, id) WHERE state = 'queued';
CREATE INDEX task_at_work ON task (worker) WHERE worker IS NOT NULL;
CREATE INDEX task_by_name ON task (name, enqueued_at);
CREATE INDEX task_by_run ON task (run_id);

-- Why a worker can't take a task: it has no such secret, or does not know the executor.
CREATE TABLE refusal (
  task text NOT NULL REFERENCES task (id) ON DELETE CASCADE,
  worker text NOT NULL REFERENCES worker (id) ON DELETE CASCADE,
  reason text NOT NULL,
  PRIMARY KEY (task, worker)
);

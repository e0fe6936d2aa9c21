-- What SynapseDB keeps on a node: schema synapsedb, its tables, and the contract of ddl_log.
--
-- Everything here may be run again at any time by a superuser, in one simple Query, with user
-- traffic going on; nothing of it is logged or replicated as DDL. Every function pins search_path,
-- because any role may own functions, operators and triggers in schemas that come before pg_catalog.
--
-- THE CONTRACT OF ddl_log (written by the event triggers on the writer, read from the stream by the applier)
--
-- One row is one DDL command that has run on the writer; its place among the unit's rows is its
-- place in time. Run it in that place as `role`, then insert the row itself into the follower's
-- ddl_log (in session_replication_role replica its guard does not fire). Only inserts matter:
-- updates, deletes and truncates of ddl_log are housekeeping and are dropped from the stream.
--
--   role      the role that ran it: run it inside that role's runner (roles.sql), nowhere else.
--   tag       the command tag, as event triggers know it.
--   command   where not null: exactly the text to run. It wins over query and ordinal.
--   query     the text the client or the function sent, whole. The command is the ordinal-th DDL
--             command in it. Null: the same as in the nearest earlier row of this unit in which it is
--             not null and nested is false (long texts are logged once in a transaction).
--   nested    false: query is a client's whole Query or prepared statement; ordinal counts from 1
--             the commands in it for which ddl_command_end fires (logged or not, REINDEX never),
--             as they ran and were not taken back: ROLLBACK and ROLLBACK TO give numbers back,
--             COMMIT does not.
--             true: query is the text that a function, DO block or trigger ran, ordinal counts the
--             DDL commands in that text alone (where it runs n times it goes on counting: take
--             ordinal - 1 modulo the number of DDL commands in the text, plus 1).
--   settings  {"search_path": "...", ...}: all settings that change meaning, values as text.
--   detail    null, or {"kind": ...}:
--     "sql_function"   query is the body of an SQL-language function; ordinal counts *all* its
--                      statements, DDL or not.
--     "concurrently"   the text has the keyword CONCURRENTLY (create index, drop index, detach
--                      partition) or FINALIZE: take it out, the rest is the command.
--     "place"          {"token"}: at this place in the stream something is made whose row comes later,
--                      since the rows it fills are written before the command ends (CREATE TABLE AS, SELECT
--                      INTO, CREATE EXTENSION). The same unit holds, later, a row whose detail has
--                      "at" with this token: run that row's command here, skip it there. No such row:
--                      nothing was made. (A place has no command, query or settings, and ordinal 0.)
--   Other keys of detail, with or without a kind:
--     "at"             see "place".
--     "missing", "extension"
--                      right after the command, run  select synapsedb.follow_up(detail)  in the superuser's runner:
--                      it stores the values that a new column has in old rows ([[schema, table, column,
--                      values], ...]), or empties the extension's tables, whose rows travel as rows.
--     "contents"       [schema, name, quoted name, owner]: run the command WITH NO DATA, then fill this
--                      materialized view with the lines of synapsedb.view_rows that follow (views.sql).
--   logged_at when it ran, on the writer's clock.

select pg_catalog.set_config('session_replication_role', 'replica', true);
select pg_catalog.set_config('search_path', 'pg_catalog', true);
select pg_catalog.set_config('check_function_bodies', 'off', true);
select pg_catalog.set_config('standard_conforming_strings', 'on', true);
select pg_catalog.set_config('client_min_messages', 'warning', true);
select pg_catalog.set_config('default_tablespace', '', true);
select pg_catalog.set_config('default_table_access_method', 'heap', true);

create schema if not exists synapsedb;
revoke all on schema synapsedb from public;
grant usage on schema synapsedb to public;

create table if not exists synapsedb.ddl_log (
  role name not null,
  tag text not null,
  ordinal int not null,
  nested bool not null,
  query text,
  settings jsonb not null,
  command text,
  detail jsonb,
  logged_at timestamptz not null
);
-- Old rows are deleted by prune_ddl_log; a published table without any identity would refuse that. (Not
-- again where it is so already: it would wait for every open transaction that has logged something.)
do $$
begin
  if not (select relreplident = 'f' and relrowsecurity from pg_class where oid = 'synapsedb.ddl_log'::regclass) then
    alter table synapsedb.ddl_log replica identity full;
    alter table synapsedb.ddl_log enable row level security;
  end if;
end
$$;
grant insert on synapsedb.ddl_log to public;

do $$
begin
  if not exists (select from pg_policy
                  where polrelid = 'synapsedb.ddl_log'::regclass and polname = 'only_oneself') then
    create policy only_oneself on synapsedb.ddl_log for insert to public
      with check (role = current_user);
  end if;
end
$$;

-- The proxy's own bookkeeping: which epoch this node has seen, who writes. Filtered from the stream.
create table if not exists synapsedb.cluster_state (
  only_row bool primary key default true check (only_row),
  epoch bigint not null,
  term_epoch bigint not null,
  writer text not null,
  cluster_id text not null,
  schema_version int not null default 0,
  written_at timestamptz not null default pg_catalog.now()
);

-- Index builds that this node still owes (it does them beside the stream). A node's own.
create table if not exists synapsedb.pending_indexes (
  id bigint generated always as identity primary key,
  command text not null,
  settings jsonb not null
);
-- Who ran the command: the build is done as that role.
alter table synapsedb.pending_indexes add column if not exists role name;
-- A build that the writer has only begun: [schema, table, index]. What it made goes if the writer's is not logged.
alter table synapsedb.pending_indexes add column if not exists early text[];

-- Up to where this node has the writer's history, one new row with each transaction of the applier; the greatest
-- counts. The origin alone does not know: an abort moves it like a commit does. Rows are added, not updated, since
-- one row's versions would have to be walked through while an old snapshot keeps them. A node's own.
create table if not exists synapsedb.applied_places (
  origin text not null,
  lsn pg_lsn not null
);
do $$
begin
  if (select relreplident <> 'f' from pg_class where oid = 'synapsedb.applied_places'::regclass) then
    alter table synapsedb.applied_places replica identity full;
  end if;
end
$$;

-- Names of nodes found wrong: what they lack may be gone from the slots, so a proxy that starts must know.
alter table synapsedb.cluster_state add column if not exists fenced text[] not null default '{}';

-- The newest epoch that this node has promised to: it accepts nothing of an older one, whoever brings it.
alter table synapsedb.cluster_state add column if not exists promised bigint not null default 0;

-- Terms in which this node was the writer: the end of its log when it took office, and, where it left office in order,
-- the end of the last unit that it made in it. A node's own.
create table if not exists synapsedb.offices (
  term bigint primary key,
  start_lsn pg_lsn not null,
  closed_lsn pg_lsn
);

-- What the metadata views show; refreshed by the proxy just before a statement that names one.
create unlogged table if not exists synapsedb.cluster_nodes_data (
  node_id int primary key,
  node_name text not null,
  host text not null,
  port int not null,
  status text not null,
  is_writer bool not null,
  last_heartbeat timestamptz,
  latency_ms float8,
  in_flight int not null default 0,
  lag_bytes bigint,
  lag_seconds float8
);
create unlogged table if not exists synapsedb.quorum_data (
  only_row bool primary key default true check (only_row),
  has_quorum bool not null,
  written_at timestamptz not null default pg_catalog.now()
);

create or replace view synapsedb.cluster_nodes as
  select node_id, node_name, host, port, status, is_writer, last_heartbeat, latency_ms, in_flight,
         lag_bytes, lag_seconds
    from synapsedb.cluster_nodes_data
   order by node_id;
grant select on synapsedb.cluster_nodes to public;

-- False where the proxy has said nothing yet: no quorum is claimed that nobody counted.
create or replace function synapsedb.check_quorum() returns boolean
  language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  select coalesce((select q.has_quorum from synapsedb.quorum_data q), false)
$$;

-- Deletes the node's own rows older than keep. Each node prunes for itself, by the proxy's admin
-- connection; the deletes that show up in a stream are ignored. A row whose unit some node still
-- lacks is not lost by it: units carry the row itself.
create or replace function synapsedb.prune_ddl_log(keep interval) returns bigint
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_count bigint;
begin
  delete from synapsedb.ddl_log l where l.logged_at < clock_timestamp() - keep;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
revoke all on function synapsedb.prune_ddl_log(interval) from public;

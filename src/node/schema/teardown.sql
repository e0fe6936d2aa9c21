-- Takes off a node's database what tables.sql to triggers.sql put there (`synapsedb release`).
-- Not here: slots, origins and ALTER SYSTEM, which the proxy resets itself; and the applier's role,
-- which other databases of the node may still need (teardown_role.sql, run last).

select pg_catalog.set_config('session_replication_role', 'replica', true);
select pg_catalog.set_config('client_min_messages', 'warning', true);
delete from pg_depend d
 where d.deptype = 'i' and d.refclassid = 'pg_namespace'::regclass and d.refobjid = 'pg_catalog'::regnamespace
   and d.classid in ('pg_namespace'::regclass, 'pg_publication'::regclass, 'pg_event_trigger'::regclass);
drop event trigger if exists "!synapsedb_0_replica";
drop event trigger if exists "!synapsedb_1_path";
drop event trigger if exists "!synapsedb_1_start";
drop event trigger if exists "!synapsedb_2_start";
drop event trigger if exists "!synapsedb_2_drop";
drop event trigger if exists "!synapsedb_2_rewrite";
drop event trigger if exists "!synapsedb_2_end";
drop publication if exists synapsedb;
drop schema if exists synapsedb cascade;
do $$
begin
  if exists (select from pg_catalog.pg_roles where rolname = 'synapsedb_applier') then
    drop owned by synapsedb_applier;
  end if;
end
$$;

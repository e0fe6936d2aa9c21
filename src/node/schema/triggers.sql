-- The publication and the event triggers: the last step, when all they call is there.
--
-- Event triggers fire in the order of their names; these must come before a user's own, whose DDL would
-- else be logged before the command that set it off.

select synapsedb.adopt();

-- Nobody drops them by accident: what looks like a part of schema pg_catalog is dropped with that only. The
-- triggers themselves could not refuse it, being gone with their functions.
create or replace function synapsedb.pin(pinned bool) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  delete from pg_depend d
   where d.deptype = 'i' and d.refclassid = 'pg_namespace'::regclass and d.refobjid = 'pg_catalog'::regnamespace
     and d.classid in ('pg_namespace'::regclass, 'pg_publication'::regclass, 'pg_event_trigger'::regclass);
  if pinned then
    insert into pg_depend (classid, objid, objsubid, refclassid, refobjid, refobjsubid, deptype)
      select o.class, o.object, 0, 'pg_namespace'::regclass, 'pg_catalog'::regnamespace, 0, 'i'
        from (select 'pg_namespace'::regclass, n.oid from pg_namespace n where n.nspname = 'synapsedb'
              union all select 'pg_publication'::regclass, p.oid from pg_publication p where p.pubname = 'synapsedb'
              union all select 'pg_event_trigger'::regclass, e.oid from pg_event_trigger e where e.evtname like '!synapsedb%') o (class, object);
  end if;
end
$$;
revoke all on function synapsedb.pin(bool) from public;
select synapsedb.pin(false);

do $$
begin
  if not exists (select from pg_publication where pubname = 'synapsedb') then
    -- From 18 on a row without a key may not be changed where its generated columns are left out.
    execute 'create publication synapsedb for all tables'
      || case when current_setting('server_version_num')::int >= 180000 then ' with (publish_generated_columns = stored)' else '' end;
  end if;
end
$$;

do $$
declare
  v_trigger record;
begin
  for v_trigger in
    select * from (values
      ('!synapsedb_0_replica', 'ddl_command_start', 'on_replica_ddl', 'A'),
      ('!synapsedb_1_path', 'ddl_command_end', 'on_path', 'O'),
      ('!synapsedb_1_start', 'ddl_command_start', 'on_path', 'O'),
      ('!synapsedb_2_start', 'ddl_command_start', 'on_ddl_start', 'O'),
      ('!synapsedb_2_rewrite', 'table_rewrite', 'on_table_rewrite', 'O'),
      ('!synapsedb_2_drop', 'sql_drop', 'on_sql_drop', 'O'),
      ('!synapsedb_2_end', 'ddl_command_end', 'on_ddl_end', 'O')) t (name, event, function, enabled)
  loop
    if not exists (select from pg_event_trigger e
                    where e.evtname = v_trigger.name and e.evtevent = v_trigger.event and e.evtenabled = v_trigger.enabled::"char"
                      and e.evtfoid = ('synapsedb.' || v_trigger.function || '()')::regprocedure) then
      execute format('drop event trigger if exists %I', v_trigger.name);
      execute format('create event trigger %I on %s execute function synapsedb.%I()',
                     v_trigger.name, v_trigger.event, v_trigger.function);
      if v_trigger.enabled = 'A' then
        execute format('alter event trigger %I enable always', v_trigger.name);
      end if;
    end if;
  end loop;
end
$$;

select synapsedb.pin(true);

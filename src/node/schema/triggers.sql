-- The publication and the event triggers: the last step, when all they call is there.
--
-- Event triggers fire in the order of their names; these must come before a user's own, whose DDL would
-- else be logged before the command that set it off.

select synapsedb.adopt();

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
      ('!synapsedb_1_path', 'ddl_command_end', 'on_path'),
      ('!synapsedb_1_start', 'ddl_command_start', 'on_path'),
      ('!synapsedb_2_start', 'ddl_command_start', 'on_ddl_start'),
      ('!synapsedb_2_rewrite', 'table_rewrite', 'on_table_rewrite'),
      ('!synapsedb_2_drop', 'sql_drop', 'on_sql_drop'),
      ('!synapsedb_2_end', 'ddl_command_end', 'on_ddl_end')) t (name, event, function)
  loop
    if not exists (select from pg_event_trigger e
                    where e.evtname = v_trigger.name and e.evtevent = v_trigger.event and e.evtenabled = 'O'
                      and e.evtfoid = ('synapsedb.' || v_trigger.function || '()')::regprocedure) then
      execute format('drop event trigger if exists %I', v_trigger.name);
      execute format('create event trigger %I on %s execute function synapsedb.%I()',
                     v_trigger.name, v_trigger.event, v_trigger.function);
    end if;
  end loop;
end
$$;

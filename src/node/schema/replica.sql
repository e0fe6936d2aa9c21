-- The one event trigger that fires in the replica role too: where it is a client's, DDL is refused in it, since the
-- other triggers would not see it and no other node would have it. Rows may be loaded so: their log is the same.

create or replace function synapsedb.on_replica_ddl() returns event_trigger
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_stack text := synapsedb.stack();
begin
  if current_setting('session_replication_role') <> 'replica'
     or coalesce(current_setting('synapsedb.relayed', true), '') <> 'on'
     -- What this schema's own functions do, which set the role for themselves.
     or v_stack ~ E'^SQL statement ".*"\\nPL/pgSQL function synapsedb\\.(pause_table|resume_table|empty_table)\\('
     -- What a data load makes for itself.
     or tg_tag in ('CREATE TABLE', 'CREATE TABLE AS')
        and current_query() ~* E'^\\s*create\\s+((global|local)\\s+)?temp(orary)?\\s+table\\s[^;]*;?\\s*$' then
    return;
  end if;
  raise exception '% cannot be replicated while session_replication_role is replica', tg_tag
    using errcode = 'feature_not_supported',
          hint = 'Run it after SET session_replication_role = DEFAULT; rows may be loaded in the replica role.';
end
$$;

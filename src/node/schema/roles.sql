-- The applier's role and the functions through which a follower runs DDL as the role that ran it.

do $$
begin
  if not exists (select from pg_roles where rolname = 'synapsedb_applier') then
    begin
      create role synapsedb_applier;
    exception when duplicate_object or unique_violation then
      null;
    end;
  end if;
end
$$;
alter role synapsedb_applier nosuperuser nocreatedb nocreaterole noreplication bypassrls login inherit;
grant pg_read_all_data, pg_write_all_data to synapsedb_applier;
grant set on parameter session_replication_role to synapsedb_applier;
do $$
declare
  v_function regprocedure;
begin
  for v_function in
    select p.oid::regprocedure from pg_proc p
     where p.pronamespace = 'pg_catalog'::regnamespace
       and p.proname in ('pg_replication_origin_session_setup', 'pg_replication_origin_session_reset',
                         'pg_replication_origin_session_is_setup', 'pg_replication_origin_session_progress',
                         'pg_replication_origin_xact_setup', 'pg_replication_origin_xact_reset',
                         'pg_replication_origin_progress', 'pg_replication_origin_oid')
  loop
    execute format('grant execute on function %s to synapsedb_applier', v_function);
  end loop;
end
$$;

-- A role's runner is run_as_<role>; where the name is too long for that, run_by_ and its hash: another role may be
-- called by that hash.
create or replace function synapsedb.runner_name(p_role name) returns name
  language sql immutable set search_path = pg_catalog, pg_temp
as $$
  select case when octet_length(p_role::text) <= 56 then ('run_as_' || p_role::text)::name
              else ('run_by_' || md5(p_role::text))::name end
$$;

-- Makes or replaces the runner of a role and returns its quoted name. For superusers.
--
--   synapsedb.run_as_x(secret text, command text, settings jsonb)   runs command, one or several statements
--
-- settings are those of ddl_log; "synapsedb.rows", where given, is the number of rows that command must touch.
--
-- It runs as the role (security definer), so RESET ROLE and SET SESSION AUTHORIZATION are refused in
-- there. Only synapsedb_applier may call it, and only who knows the secret: code that an applied
-- row sets off runs as synapsedb_applier too, and does not know it. The caller must see to it
-- that such code never learns it: bind the secret, never write it into the text; parse the
-- statement anew each time (a named prepared statement can be replaced by DEALLOCATE and
-- PREPARE); and just before binding run
--   select pg_catalog.set_config('log_parameter_max_length_on_error', '0', false)
-- in a statement of its own, else the parameters can be read from PG_CONTEXT.
create or replace function synapsedb.make_runner(role name, secret_hash text) returns text
  language plpgsql set search_path = pg_catalog, pg_temp set session_replication_role = replica
as $$
declare
  v_name name := synapsedb.runner_name(role);
  v_check text := format($check$
  if current_user <> %L or secret is null
     or encode(sha256(convert_to(secret, 'UTF8')), 'hex') <> %L then
    raise exception 'not for you' using errcode = 'insufficient_privilege';
  end if;$check$, role, secret_hash);
  v_clauses text := $clauses$security definer set search_path = pg_catalog, pg_temp set row_security = on
  set TimeZone = 'UTC' set DateStyle = 'ISO, MDY' set IntervalStyle = 'postgres' set check_function_bodies = off
  set default_tablespace = '' set default_table_access_method = 'heap' set default_toast_compression = 'pglz'
  set standard_conforming_strings = on set xmloption = 'content' set lc_monetary = 'C' set transform_null_equals = off
  set client_min_messages = warning$clauses$;
begin
  execute format($make$
create or replace function synapsedb.%1$I(secret text, command text, settings jsonb) returns void
  language plpgsql %2$s
as $body$
#variable_conflict use_variable
declare
  v_key text;
  v_value text;
  v_rows bigint;
begin%3$s
  for v_key, v_value in select s.key, s.value from jsonb_each_text(settings) s loop
    if v_key in ('TimeZone', 'DateStyle', 'IntervalStyle', 'default_tablespace', 'default_table_access_method',
                 'default_toast_compression', 'standard_conforming_strings', 'xmloption', 'lc_monetary',
                 'transform_null_equals') then
      perform set_config(v_key, v_value, true);
    end if;
  end loop;
  if settings ? 'search_path' then
    perform set_config('search_path', settings ->> 'search_path', true);
  end if;
  set constraints all immediate;
  execute command;
  get diagnostics v_rows = row_count;
  -- What waits for the end of the transaction would run with the caller's rights.
  set constraints all immediate;
  for v_key in select c.name from pg_catalog.pg_cursors c where c.is_holdable loop
    execute pg_catalog.format('close %%I', v_key);
  end loop;
  if v_rows <> (settings ->> 'synapsedb.rows')::bigint then
    raise exception '%% rows instead of %%', v_rows, settings ->> 'synapsedb.rows' using errcode = 'data_exception';
  end if;
end
$body$;
alter function synapsedb.%1$I(text, text, jsonb) owner to %4$I;
revoke all on function synapsedb.%1$I(text, text, jsonb) from public;
grant execute on function synapsedb.%1$I(text, text, jsonb) to synapsedb_applier;
$make$, v_name, v_clauses, v_check, role);
  return format('synapsedb.%I', v_name);
end
$$;
revoke all on function synapsedb.make_runner(name, text) from public;

-- Drops the runner of one role, so that the role can be dropped, or all of them (null): a node that
-- becomes writer keeps none, else DROP ROLE would fail there for a reason no user can see.
create or replace function synapsedb.drop_runners(role name) returns int
  language plpgsql set search_path = pg_catalog, pg_temp set session_replication_role = replica
as $$
declare
  v_function regprocedure;
  v_count int := 0;
begin
  for v_function in
    select p.oid::regprocedure from pg_proc p
     where p.pronamespace = 'synapsedb'::regnamespace
       and case when drop_runners.role is null then p.proname ~ '^run_(as|by)_'
                else p.proname = synapsedb.runner_name(drop_runners.role) end
  loop
    execute format('drop function %s', v_function);
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;
revoke all on function synapsedb.drop_runners(name) from public;

-- What a row's detail asks for after its command has run on a follower. For the superuser's runner.
create or replace function synapsedb.follow_up(detail jsonb) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_missing jsonb;
  v_tables text;
begin
  for v_missing in select jsonb_array_elements(detail -> 'missing') loop
    -- What reads the value runs as the superuser. The writer sends none of such a type.
    if exists (select from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
                where n.nspname = v_missing ->> 0 and c.relname = v_missing ->> 1 and a.attname = v_missing ->> 2
                  and not synapsedb.is_plainly_read(a.atttypid)) then
      raise exception 'the stored default of column % of %.% is of a type whose input may run a user''s code',
        v_missing ->> 2, v_missing ->> 0, v_missing ->> 1 using errcode = 'feature_not_supported';
    end if;
    update pg_attribute a
       set attmissingval = array_in((v_missing ->> 3)::cstring, a.atttypid, a.atttypmod)
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where a.attrelid = c.oid and n.nspname = v_missing ->> 0 and c.relname = v_missing ->> 1
       and a.attname = v_missing ->> 2 and a.atthasmissing;
    if not found then
      raise exception 'column % of %.% has no stored default here', v_missing ->> 2, v_missing ->> 0, v_missing ->> 1;
    end if;
  end loop;
  -- The rows that an extension's script made travel as rows.
  if detail ? 'extension' then
    select string_agg(c.oid::regclass::text, ', ')
      into v_tables
      from pg_extension e, unnest(synapsedb.extension_relations(e.oid)) o
      join pg_class c on c.oid = o and c.relkind = 'r'
     where e.extname = detail ->> 'extension';
    if v_tables is not null then
      execute 'truncate only ' || v_tables;
    end if;
  end if;
end
$$;
revoke all on function synapsedb.follow_up(jsonb) from public;

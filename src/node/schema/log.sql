-- The event trigger functions: they see each DDL command and write ddl_log.
--
-- They run as whoever runs the DDL, so all they use is granted to PUBLIC, and all that is granted
-- to PUBLIC is guarded: by row security (a role names only itself) and by the call stack.

-- The call stack below the function that asks, in English. A definer's function, because only a
-- superuser may set lc_messages.
create or replace function synapsedb.stack() returns text
  language plpgsql security definer
  set search_path = pg_catalog set lc_messages = 'C' set quote_all_identifiers = off
as $$
declare
  v_stack text;
begin
  get diagnostics v_stack = pg_context;
  return regexp_replace(v_stack,
    E'^PL/pgSQL function synapsedb\\.stack\\(\\) line \\d+ at GET DIAGNOSTICS\\n'
    '(?:(?:SQL expression|SQL statement|PL/pgSQL assignment) "[^\\n]*\\n)?'
    'PL/pgSQL function synapsedb\\.[a-z_]+\\([a-z, ]*\\) line \\d+ (?:at [^\\n]*|during [^\\n]*)(?:\\n|$)', '');
end
$$;

-- Accepts a row of ddl_log only from the statement below in the functions below. The whole prefix of
-- the stack is compared, so text that a user chose comes too late in it to matter.
create or replace function synapsedb.guard_ddl_log() returns trigger
  language plpgsql security definer
  set search_path = pg_catalog set lc_messages = 'C' set quote_all_identifiers = off
as $$
declare
  v_stack text;
begin
  get diagnostics v_stack = pg_context;
  if v_stack !~ (E'^PL/pgSQL function synapsedb\\.guard_ddl_log\\(\\) line \\d+ at GET DIAGNOSTICS\\n'
      'SQL statement "insert into synapsedb\\.ddl_log \\(role, tag, ordinal, nested, query, settings, command, detail, logged_at\\)'
      '\\s+values \\(current_user, v_tag, v_ordinal, v_nested, v_query, v_settings, v_command, v_detail, clock_timestamp\\(\\)\\)"\\n'
      'PL/pgSQL function synapsedb\\.(on_ddl_start|on_ddl_end|on_table_rewrite|log_proxy_command)\\((text,text,text,jsonb,jsonb)?\\) line \\d+ at SQL statement(\\n|$)') then
    raise exception 'synapsedb.ddl_log is written by SynapseDB''s event triggers only'
      using errcode = 'insufficient_privilege';
  end if;
  return new;
end
$$;
create or replace trigger guard before insert on synapsedb.ddl_log
  for each row execute function synapsedb.guard_ddl_log();

-- The settings that change what a text means, as they are for the caller; his search_path was
-- noted by on_path just before, since this function sees only its own.
create or replace function synapsedb.settings_now() returns jsonb
  language plpgsql set search_path = pg_catalog
as $$
begin
  return jsonb_build_object(
    'search_path', current_setting('synapsedb.path'),
    'TimeZone', current_setting('TimeZone'),
    'DateStyle', current_setting('DateStyle'),
    'IntervalStyle', current_setting('IntervalStyle'),
    'check_function_bodies', current_setting('check_function_bodies'),
    'default_tablespace', current_setting('default_tablespace'),
    'default_table_access_method', current_setting('default_table_access_method'),
    'default_toast_compression', current_setting('default_toast_compression'),
    'standard_conforming_strings', current_setting('standard_conforming_strings'),
    'xmloption', current_setting('xmloption'),
    'lc_monetary', current_setting('lc_monetary'),
    'transform_null_equals', current_setting('transform_null_equals'));
end
$$;

-- Notes the caller's search_path for the functions that pin their own. Its trigger's name sorts first.
-- No SET clause here, so every name and operator is written out.
create or replace function synapsedb.on_path() returns event_trigger
  language plpgsql
as $$
begin
  perform pg_catalog.set_config('synapsedb.path', pg_catalog.current_setting('search_path'), false);
end
$$;

-- Whether an object lives, or hangs on something that lives, in a temporary schema.
create or replace function synapsedb.is_temporary(p_class oid, p_object oid) returns boolean
  language plpgsql stable set search_path = pg_catalog
as $$
declare
  v_relation oid;
  v_schema oid;
begin
  case p_class
    when 'pg_class'::regclass then v_relation := p_object;
    when 'pg_trigger'::regclass then select tgrelid into v_relation from pg_trigger where oid = p_object;
    when 'pg_rewrite'::regclass then select ev_class into v_relation from pg_rewrite where oid = p_object;
    when 'pg_policy'::regclass then select polrelid into v_relation from pg_policy where oid = p_object;
    when 'pg_attrdef'::regclass then select adrelid into v_relation from pg_attrdef where oid = p_object;
    when 'pg_statistic_ext'::regclass then select stxrelid into v_relation from pg_statistic_ext where oid = p_object;
    when 'pg_constraint'::regclass then
      select nullif(conrelid, 0), connamespace into v_relation, v_schema from pg_constraint where oid = p_object;
    when 'pg_proc'::regclass then select pronamespace into v_schema from pg_proc where oid = p_object;
    when 'pg_type'::regclass then select typnamespace into v_schema from pg_type where oid = p_object;
    when 'pg_operator'::regclass then select oprnamespace into v_schema from pg_operator where oid = p_object;
    when 'pg_collation'::regclass then select collnamespace into v_schema from pg_collation where oid = p_object;
    when 'pg_conversion'::regclass then select connamespace into v_schema from pg_conversion where oid = p_object;
    when 'pg_opclass'::regclass then select opcnamespace into v_schema from pg_opclass where oid = p_object;
    when 'pg_opfamily'::regclass then select opfnamespace into v_schema from pg_opfamily where oid = p_object;
    when 'pg_ts_dict'::regclass then select dictnamespace into v_schema from pg_ts_dict where oid = p_object;
    when 'pg_ts_config'::regclass then select cfgnamespace into v_schema from pg_ts_config where oid = p_object;
    else null;
  end case;
  if v_relation is not null then
    return coalesce((select relpersistence = 't' from pg_class where oid = v_relation), false);
  end if;
  return coalesce(v_schema is not null and v_schema = pg_my_temp_schema(), false);
end
$$;

-- What a command is, where it came from, and its number: the one place that reads the stack.
create or replace function synapsedb.locate_command(
    p_stack text, p_tag text, out nested bool, out query text, out ordinal int, out command text, out detail jsonb)
  language plpgsql set search_path = pg_catalog
as $$
declare
  v_now text := extract(epoch from statement_timestamp())::text;
  v_key text;
  v_match text[];
  v_seen text[];
  v_bodies text[];
begin
  nested := p_stack <> '';
  if not nested then
    query := current_query();
    v_key := v_now || '/';
  elsif p_stack like 'SQL statement "%' then
    v_match := regexp_match(p_stack, E'^SQL statement "(.*?)"(?:$|\\n(?:PL/|SQL |[A-Za-z/]+ function ))');
    query := v_match[1];
    if query !~ E';\\s*\\S' then
      command := query;
    end if;
    v_key := v_now || '/' || md5(query);
  elsif p_stack like 'SQL function "%' then
    v_match := regexp_match(p_stack, E'^SQL function "(.*?)" statement (\\d+)(?:$|\\n)');
    select array_agg(distinct p.prosrc) into v_bodies
      from pg_proc p join pg_language l on l.oid = p.prolang
     where l.lanname = 'sql' and p.proname = v_match[1] and p.prosqlbody is null
       and p.prosrc ~* (E'\\m' || split_part(p_tag, ' ', 1) || E'\\M');
    if cardinality(v_bodies) is distinct from 1 then
      raise exception '% in the SQL-language function "%" cannot be replicated: it is not known which of its namesakes ran',
        p_tag, v_match[1] using errcode = 'feature_not_supported',
        hint = 'Give the function a name of its own, or write it in PL/pgSQL.';
    end if;
    query := v_bodies[1];
    ordinal := v_match[2]::int;
    detail := jsonb_build_object('kind', 'sql_function');
    return;
  end if;
  if query is null then
    raise exception '% cannot be replicated from here: %', p_tag, split_part(p_stack, E'\n', 1)
      using errcode = 'feature_not_supported';
  end if;
  v_seen := regexp_match(coalesce(current_setting('synapsedb.seen_' || case when nested then 'nested' else 'top' end, true), ''),
                         '^(.*)=([0-9]+)$');
  ordinal := case when v_seen[1] = v_key then v_seen[2]::int else 0 end + 1;
  perform set_config('synapsedb.seen_' || case when nested then 'nested' else 'top' end, v_key || '=' || ordinal, false);
  if not nested and query ~* E'\\mconcurrently\\M' and p_tag in ('CREATE INDEX', 'DROP INDEX', 'ALTER TABLE') then
    detail := jsonb_build_object('kind', 'concurrently');
  end if;
end
$$;

create or replace function synapsedb.on_ddl_start() returns event_trigger
  language plpgsql
  set search_path = pg_catalog set row_security = on set quote_all_identifiers = off
as $$
begin
  perform set_config('synapsedb.drops', '', false);
  if tg_tag in ('CREATE SUBSCRIPTION', 'ALTER SUBSCRIPTION') then
    raise exception '% is not supported: this database is replicated by SynapseDB', tg_tag
      using errcode = 'feature_not_supported';
  end if;
  if tg_tag in ('CREATE EXTENSION', 'ALTER EXTENSION') then
    perform set_config('synapsedb.extension',
      (coalesce(nullif(current_setting('synapsedb.extension', true), ''), '0')::int + 1)::text, true);
  end if;
end
$$;

-- Notes for on_ddl_end what a command dropped, which only this event can see.
create or replace function synapsedb.on_sql_drop() returns event_trigger
  language plpgsql
  set search_path = pg_catalog set row_security = on set quote_all_identifiers = off
as $$
declare
  v_drops text;
begin
  select case when bool_or(d.schema_name = 'synapsedb' or (d.object_type = 'schema' and d.object_name = 'synapsedb')) then 'own'
              when bool_and(d.is_temporary) then 'temporary' else 'some' end
    into v_drops
    from pg_event_trigger_dropped_objects() d
   where d.original;
  if v_drops = 'own' and not (select r.rolsuper from pg_roles r where r.rolname = current_user) then
    raise exception 'objects of schema synapsedb belong to SynapseDB' using errcode = 'insufficient_privilege';
  end if;
  perform set_config('synapsedb.drops', coalesce(v_drops, 'some'), false);
end
$$;

create or replace function synapsedb.on_ddl_end() returns event_trigger
  language plpgsql
  set search_path = pg_catalog set row_security = on set quote_all_identifiers = off
as $$
declare
  v_stack text := synapsedb.stack();
  v_tag text := tg_tag;
  v_ordinal int; v_nested bool; v_query text; v_settings jsonb; v_command text; v_detail jsonb;
  v_drops text := coalesce(current_setting('synapsedb.drops', true), '');
  v_made int; v_temporary int; v_own int;
begin
  if tg_tag in ('CREATE EXTENSION', 'ALTER EXTENSION') then
    perform set_config('synapsedb.extension',
      greatest(coalesce(nullif(current_setting('synapsedb.extension', true), ''), '0')::int - 1, 0)::text, true);
  end if;
  if tg_tag = 'REINDEX' or coalesce(nullif(current_setting('synapsedb.extension', true), ''), '0') <> '0' then
    return;
  end if;
  select l.nested, l.query, l.ordinal, l.command, l.detail
    into v_nested, v_query, v_ordinal, v_command, v_detail
    from synapsedb.locate_command(v_stack, tg_tag) l;
  perform set_config('synapsedb.drops', '', false);
  select count(*), count(*) filter (where synapsedb.is_temporary(c.classid, c.objid)),
         count(*) filter (where c.schema_name = 'synapsedb' or c.object_identity = 'synapsedb')
    into v_made, v_temporary, v_own
    from pg_event_trigger_ddl_commands() c;
  if v_own > 0 or v_drops = 'own' then
    if not (select r.rolsuper from pg_roles r where r.rolname = current_user) then
      raise exception 'objects of schema synapsedb belong to SynapseDB' using errcode = 'insufficient_privilege';
    end if;
    return;
  end if;
  -- Nothing made and nothing dropped is a command that did nothing (IF NOT EXISTS), but for DROP
  -- OWNED, which may only revoke, and DETACH CONCURRENTLY, which ends in another transaction.
  if v_made = 0 and v_drops = '' and tg_tag <> 'DROP OWNED'
     and coalesce(v_detail ->> 'kind', '') <> 'concurrently' then
    return;
  end if;
  if (v_made > 0 and v_made = v_temporary) or (v_made = 0 and v_drops = 'temporary') then
    return;
  end if;
  v_settings := synapsedb.settings_now();
  insert into synapsedb.ddl_log (role, tag, ordinal, nested, query, settings, command, detail, logged_at)
    values (current_user, v_tag, v_ordinal, v_nested, v_query, v_settings, v_command, v_detail, clock_timestamp());
end
$$;

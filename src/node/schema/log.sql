-- The event triggers' functions: they see each DDL command and write ddl_log. What has to be done to a
-- command's objects besides is in mend.sql.

-- The settings that change what a text means, as they are for the caller; his search_path was
-- noted by on_path just before, since these functions see only their own.
create or replace function synapsedb.settings_now() returns jsonb
  language plpgsql set search_path = pg_catalog, pg_temp
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

-- Notes the caller's search_path for the functions that pin their own; its triggers' names sort first.
-- No SET clause here, so every name is written out.
create or replace function synapsedb.on_path() returns event_trigger
  language plpgsql
as $$
begin
  perform pg_catalog.set_config('synapsedb.path', pg_catalog.current_setting('search_path'), false);
end
$$;

-- Whether an object lives, or hangs on something that lives, in a temporary schema.
create or replace function synapsedb.is_temporary(p_class oid, p_object oid) returns boolean
  language plpgsql stable set search_path = pg_catalog, pg_temp
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
    when 'pg_statistic_ext'::regclass then
      select stxrelid into v_relation from pg_statistic_ext where oid = p_object;
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

-- How many callers there are that run SQL, from the function that asks outwards: each holds one such memory
-- context. A definer's function, since not everyone may look at these.
create or replace function synapsedb.callers() returns int
  language sql security definer set search_path = pg_catalog, pg_temp
as $$
  select count(*)::int from pg_backend_memory_contexts where name = 'SPI Proc'
$$;

-- The text that stands innermost in a stack, which the function that asks got from an event trigger's function.
-- A text may hold lines that look like a stack's. Cut off there, more functions would stand behind the text
-- than there are; what runs a text without a line of its own (query_to_xml, a cascading foreign key) could hide
-- that, and shows by a statement behind which no function stands, or one that does not run statements.
create or replace function synapsedb.innermost_text(p_stack text, p_callers int) returns text
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_match text[] := regexp_match(p_stack, E'^SQL statement "(.*?)"(?:\n(PL/[A-Za-z]+ function .*))?$');
begin
  if v_match[2] is null
     or (select count(*) from regexp_matches(E'\n' || v_match[2], E'\nPL/[A-Za-z]+ function ', 'g')) <> p_callers
     or v_match[2] ~ E'"\n(SQL |[A-Za-z]+ function )' or v_match[2] ~ E'"$'
     or E'\nSQL statement ""\n' || v_match[2]
        ~ (E'\nSQL statement "((?!\n(SQL expression|PL/pgSQL assignment) ").)*"\nPL/pgSQL function [^\n]* '
           '(line \\d+ at (assignment|RETURN|IF|CASE|ASSERT|RAISE|WHILE)|during [^\n]*)(\n|$)') then
    raise exception 'a DDL command that a function runs cannot be replicated from here: where its text ends is not certain'
      using errcode = 'feature_not_supported',
            hint = 'Leave double quotes before the end of a line out of the text, or run the command by itself.';
  end if;
  return v_match[1];
end
$$;

-- Whether a command is one of those by which REFRESH MATERIALIZED VIEW CONCURRENTLY makes and drops a temporary table
-- of its own. Nobody's function stands behind it.
create or replace function synapsedb.is_refreshing(p_stack text) returns bool
  language sql immutable set search_path = pg_catalog, pg_temp
as $$
  select p_stack ~ (E'^SQL statement "(?:(CREATE TEMP TABLE|ALTER TABLE) pg_temp_\\d+\\.pg_temp_\\d+_2 [^;,\\n]*'
                     '|DROP TABLE pg_temp_\\d+\\.pg_temp_\\d+_2(, pg_temp_\\d+\\.pg_temp_\\d+)?)"(\\n|$)')
$$;

-- What the text of a command is, where it came from, and the key under which its number is counted.
create or replace function synapsedb.locate_command(
    p_stack text, p_tag text,
    out nested bool, out query text, out ordinal int, out command text, out detail jsonb, out counter text)
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_match text[];
  v_bodies text[];
begin
  nested := p_stack <> '';
  if not nested then
    query := current_query();
    counter := 'top';
    if query ~* E'\\m(concurrently|finalize)\\M' and p_tag in ('CREATE INDEX', 'DROP INDEX', 'ALTER TABLE') then
      detail := jsonb_build_object('kind', 'concurrently');
    end if;
  elsif p_stack like 'SQL statement "%' then
    query := synapsedb.innermost_text(p_stack, synapsedb.callers() - 2);
    counter := md5(p_stack);
    if query !~ E';\\s*\\S' then
      command := query;
      ordinal := 1;
    end if;
  elsif p_stack like 'SQL function "%' then
    v_match := regexp_match(p_stack, E'^SQL function "(.*?)" statement (\\d+)(?:$|\\n)');
    select array_agg(distinct p.prosrc) into v_bodies
      from pg_proc p join pg_language l on l.oid = p.prolang
     where l.lanname = 'sql' and p.proname = v_match[1] and p.prosqlbody is null
       and p.prosrc ~* (E'\\m' || split_part(p_tag, ' ', 1) || E'\\M');
    if cardinality(v_bodies) is distinct from 1 then
      raise exception '% in the SQL-language function "%" cannot be replicated: several functions have this name',
        p_tag, v_match[1] using errcode = 'feature_not_supported',
        hint = 'Give the function a name of its own, or write it in PL/pgSQL.';
    end if;
    query := v_bodies[1];
    ordinal := v_match[2]::int;
    detail := jsonb_build_object('kind', 'sql_function');
  end if;
  if query is null then
    raise exception '% cannot be replicated from here: %', p_tag, split_part(p_stack, E'\n', 1)
      using errcode = 'feature_not_supported';
  end if;
end
$$;

create or replace function synapsedb.on_ddl_start() returns event_trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp set row_security = on set quote_all_identifiers = off
as $$
declare
  v_tag text := tg_tag;
  v_ordinal int := 0; v_nested bool; v_query text; v_settings jsonb; v_command text; v_detail jsonb;
  v_depth int := coalesce(nullif(synapsedb.recall('extension'), '')::int, 0);
  v_stack text := synapsedb.stack();
  v_token text;
begin
  perform synapsedb.await_stream();
  perform synapsedb.remember('drops', '');
  if v_tag in ('CREATE SUBSCRIPTION', 'ALTER SUBSCRIPTION') then
    raise exception '% is not supported: this database is replicated by SynapseDB', v_tag
      using errcode = 'feature_not_supported';
  end if;
  if v_tag in ('CREATE EXTENSION', 'ALTER EXTENSION') then
    perform synapsedb.remember('extension', (v_depth + 1)::text);
  end if;
  if v_depth > 0 or synapsedb.is_refreshing(v_stack) then
    return;
  end if;
  if v_tag in ('CREATE TABLE AS', 'SELECT INTO', 'CREATE EXTENSION') then
    v_nested := v_stack <> '';
    if v_tag <> 'CREATE EXTENSION' and synapsedb.is_plainly_temporary(v_stack) then
      v_token := '-';
    else
      v_token := gen_random_uuid()::text;
      v_detail := jsonb_build_object('kind', 'place', 'token', v_token);
      v_settings := '{}';
      insert into synapsedb.ddl_log (role, tag, ordinal, nested, query, settings, command, detail, logged_at)
        values (current_user, v_tag, v_ordinal, v_nested, v_query, v_settings, v_command, v_detail, clock_timestamp());
    end if;
    perform synapsedb.remember('places', v_token || ',' || synapsedb.recall('places'));
  elsif v_tag = 'ALTER TABLE' then
    perform synapsedb.note_command_id();
    perform synapsedb.remember('detached', synapsedb.detached_checks(current_query()));
  elsif v_tag in ('GRANT', 'REVOKE') then
    perform synapsedb.remember('grants', synapsedb.temporary_acls());
  end if;
end
$$;

-- Whether a text is one CREATE TEMPORARY TABLE AS or SELECT INTO TEMPORARY: then no place is logged for it.
create or replace function synapsedb.is_plainly_temporary(p_stack text) returns boolean
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  v_text text;
begin
  if p_stack like 'SQL function "%' then
    return false;
  end if;
  v_text := case when p_stack = '' then current_query()
                 else synapsedb.innermost_text(p_stack, synapsedb.callers() - 2) end;
  return v_text !~ E';\\s*\\S' and (
    v_text ~* E'^\\s*create\\s+((global|local)\\s+)?temp(orary)?\\s+table\\s'
    or (v_text ~* E'\\minto\\s+((global|local)\\s+)?temp(orary)?\\s' and v_text !~* E'^\\s*create\\s'));
end
$$;

-- What the privileges on this session's temporary objects look like: no event says what a GRANT was on.
create or replace function synapsedb.temporary_acls() returns text
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_my_temp_schema() = 0 then
    return '';
  end if;
  return (select md5(string_agg(x.t || x.at, ',' order by x.t, x.at))
            from (select 'c' || c.oid, c.ctid::text from pg_class c where c.relnamespace = pg_my_temp_schema()
                  union all select 'p' || p.oid, p.ctid::text from pg_proc p where p.pronamespace = pg_my_temp_schema()
                  union all select 'y' || y.oid, y.ctid::text from pg_type y where y.typnamespace = pg_my_temp_schema()
                  union all select 'a' || a.attrelid || '.' || a.attnum, a.ctid::text
                    from pg_class c join pg_attribute a on a.attrelid = c.oid
                   where c.relnamespace = pg_my_temp_schema()) x (t, at));
end
$$;

-- The table that a DETACH PARTITION ... CONCURRENTLY names and its CHECK constraints, as table/oid/oid: the
-- command leaves one more behind, which its plain form does not. It always stands alone in its text.
create or replace function synapsedb.detached_checks(p_text text) returns text
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := substring(p_text from E'(?i)\\mdetach\\s+partition\\s+((?:"(?:[^"]|"")+"|[[:alpha:]_][\\w$]*)'
                                       '(?:\\s*\\.\\s*(?:"(?:[^"]|"")+"|[[:alpha:]_][\\w$]*))?)\\s+concurrently\\M');
  v_table oid;
begin
  if v_name is null then
    return '';
  end if;
  -- Nothing but these two calls may run under the caller's search_path.
  perform pg_catalog.set_config('search_path', pg_catalog.current_setting('synapsedb.path'), true);
  v_table := pg_catalog.to_regclass(v_name);
  perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
  return (select concat_ws('/', v_table, string_agg(c.oid::text, '/'))
            from pg_constraint c where c.conrelid = v_table and c.contype = 'c');
end
$$;

-- Notes for on_ddl_end what a command dropped, which only this event can see.
create or replace function synapsedb.on_sql_drop() returns event_trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp set row_security = on set quote_all_identifiers = off
as $$
declare
  v_mine text := md5(synapsedb.stack());
  v_drops text;
  v_tables text;
  v_list text;
  v_indexes bool;
begin
  select case when bool_or(d.schema_name = 'synapsedb'
                           or d.object_type in ('schema', 'publication') and d.object_name = 'synapsedb') then 'own'
              when bool_and(d.is_temporary) then 'temporary'
              when bool_or(d.is_temporary) then 'mixed' else 'some' end,
         string_agg(format('drop %s %s%s cascade', d.object_type, case d.object_type when 'index' then 'if exists ' else '' end,
                           d.object_identity), '; ')
           filter (where d.original and not d.is_temporary),
         bool_and(d.object_type = 'index')
    into v_drops, v_list, v_indexes
    from pg_event_trigger_dropped_objects() d
   where d.original;
  -- Tables that lost a constraint or a column may have lost their key; an index does not say whose it was.
  select concat_ws(',', string_agg(distinct to_regclass(format('%I.%I', d.address_names[1], d.address_names[2]))::oid::text, ',')
                          filter (where d.object_type <> 'index'),
                        case when bool_or(d.object_type = 'index') then '0' end)
    into v_tables
    from pg_event_trigger_dropped_objects() d
   where d.object_type in ('table constraint', 'table column') or d.object_type = 'index' and d.original;
  perform synapsedb.remember('drops', v_mine || '/' || coalesce(v_drops, 'some') || '/' || coalesce(v_tables, '')
                             || '/' || case when v_drops = 'mixed' or v_indexes then v_list else '' end);
end
$$;

create or replace function synapsedb.on_table_rewrite() returns event_trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp set row_security = on set quote_all_identifiers = off
as $$
declare
  v_mine text := md5(synapsedb.stack());
begin
  perform synapsedb.remember('rewrites', synapsedb.recall('rewrites') || v_mine || '/'
    || pg_event_trigger_table_rewrite_oid() || '/' || pg_event_trigger_table_rewrite_reason() || ',');
end
$$;

-- For commands that no event trigger sees (rule 22): the proxy, which has read them itself, adds their row in the
-- client's own session and transaction. It names the role that asks, as every row does, and needs the
-- proxy's secret, which is bound as a parameter and never written into a text.
create or replace function synapsedb.log_command(secret text, tag text, command text, settings jsonb, detail jsonb)
  returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp set row_security = on set quote_all_identifiers = off
as $$
declare
  v_tag text := log_command.tag;
  v_ordinal int := 1; v_nested bool := false; v_query text;
  v_settings jsonb := coalesce(log_command.settings, '{}');
  v_command text := log_command.command;
  v_detail jsonb := log_command.detail;
begin
  if not synapsedb.is_log_secret(log_command.secret) or v_command is null then
    raise exception 'not for you' using errcode = 'insufficient_privilege';
  end if;
  -- The guard of ddl_log does not fire in the replica role.
  perform synapsedb.await_stream();
  insert into synapsedb.ddl_log (role, tag, ordinal, nested, query, settings, command, detail, logged_at)
    values (current_user, v_tag, v_ordinal, v_nested, v_query, v_settings, v_command, v_detail, clock_timestamp());
end
$$;

create or replace function synapsedb.is_log_secret(secret text) returns boolean
  language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce((select k.log_hash = encode(sha256(convert_to(is_log_secret.secret, 'UTF8')), 'hex')
                     from synapsedb.node_key k), false);
end
$$;

-- Sets the hash (SHA-256, hex) of the secret that log_command asks for. For superusers, on each node.
create or replace function synapsedb.set_log_hash(hash text) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  update synapsedb.node_key k set log_hash = set_log_hash.hash where k.log_hash is distinct from set_log_hash.hash;
end
$$;
revoke all on function synapsedb.set_log_hash(text) from public;

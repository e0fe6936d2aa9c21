-- ddl_command_end: the one place that decides whether a command is logged, and how.

create or replace function synapsedb.on_ddl_end() returns event_trigger
  language plpgsql
  set search_path = pg_catalog, pg_temp set row_security = on set quote_all_identifiers = off
as $$
declare
  v_stack text := synapsedb.stack();
  v_mine text := md5(v_stack);
  v_tag text := tg_tag;
  v_ordinal int; v_nested bool; v_query text; v_settings jsonb; v_command text; v_detail jsonb;
  v_depth int := coalesce(nullif(synapsedb.recall('extension'), '')::int, 0);
  v_drops text[] := string_to_array(synapsedb.recall('drops'), '/');
  v_counter text;
  v_counts text;
  v_token text;
  v_text text;
  v_classes oid[]; v_objects oid[];
  v_made int; v_temporary int; v_own int;
  v_relations oid[];
  v_rewrites text[];
  v_rewrite text;
  v_spread oid[];
  v_missing jsonb;
  v_began text;
  v_kept oid[];
  v_view oid; v_filled jsonb;
begin
  if v_tag in ('CREATE EXTENSION', 'ALTER EXTENSION') then
    v_depth := greatest(v_depth - 1, 0);
    perform synapsedb.remember('extension', case when v_depth = 0 then '' else v_depth::text end);
  end if;
  if v_tag = 'REINDEX' or v_depth > 0 then
    return;
  end if;
  perform synapsedb.remember('drops', '');
  if v_drops[1] is distinct from v_mine then
    v_drops := array[v_mine, '', '', ''];
  end if;
  v_drops[4] := array_to_string(v_drops[4:], '/');

  -- What it made or changed.
  select array_agg(c.classid), array_agg(c.objid), count(*),
         count(*) filter (where synapsedb.is_temporary(c.classid, c.objid)),
         count(*) filter (where c.schema_name = 'synapsedb'
                             or c.object_type in ('schema', 'publication') and c.object_identity = 'synapsedb'),
         array_agg(distinct c.objid) filter (where c.classid = 'pg_class'::regclass)
    into v_classes, v_objects, v_made, v_temporary, v_own, v_relations
    from pg_event_trigger_ddl_commands() c;
  if synapsedb.is_refreshing(v_stack) and v_made = v_temporary and v_drops[2] in ('', 'temporary') then
    return;
  end if;

  select l.nested, l.query, l.ordinal, l.command, l.detail, l.counter
    into v_nested, v_query, v_ordinal, v_command, v_detail, v_counter
    from synapsedb.locate_command(v_stack, v_tag) l;
  v_text := v_query;
  -- Texts that stand in each other are counted side by side.
  if v_ordinal is null then
    v_counts := synapsedb.recall('counts');
    v_ordinal := coalesce(substring(v_counts from '(?:^|,)' || v_counter || '/([0-9]+)'), '0')::int + 1;
    perform synapsedb.remember('counts', v_counter || '/' || v_ordinal
                                         || regexp_replace(',' || v_counts, ',' || v_counter || '/[0-9]+', ''));
  end if;
  if v_tag in ('CREATE TABLE AS', 'SELECT INTO', 'CREATE EXTENSION') then
    v_token := split_part(synapsedb.recall('places'), ',', 1);
    perform synapsedb.remember('places', substring(synapsedb.recall('places') from '^[^,]*,(.*)$'));
  end if;

  if v_own > 0 or v_drops[2] = 'own' then
    raise exception 'schema and publication synapsedb belong to SynapseDB'
      using errcode = 'insufficient_privilege',
            hint = 'A role called synapsedb has this schema first in its search_path: ALTER ROLE ... SET search_path = public.';
  end if;

  -- Nothing made and nothing dropped is a command that did nothing (IF NOT EXISTS), but for DROP
  -- OWNED, which may only revoke, and CONCURRENTLY, which ends in another transaction.
  if v_made = 0 and v_drops[2] = '' and v_tag <> 'DROP OWNED'
     and coalesce(v_detail ->> 'kind', '') <> 'concurrently' then
    return;
  end if;
  -- What a CREATE INDEX CONCURRENTLY that failed left is on this node alone, and nothing uses it.
  if v_tag = 'CREATE INDEX' and v_detail ->> 'kind' = 'concurrently'
     and not exists (select from pg_index i where i.xmin = pg_current_xact_id()::xid and i.indisvalid) then
    return;
  end if;
  if v_tag in ('ALTER INDEX', 'ALTER TABLE', 'COMMENT') and exists (
       select from pg_index i join pg_class c on c.oid = i.indexrelid
        where i.indexrelid = v_objects[1] and not i.indisvalid and c.relkind = 'i') then
    return;
  end if;
  if (v_made > 0 and v_made = v_temporary) or (v_made = 0 and v_drops[2] = 'temporary') then
    return;
  end if;
  if v_tag in ('GRANT', 'REVOKE') and synapsedb.recall('grants') is distinct from coalesce(synapsedb.temporary_acls(), '') then
    if v_text ~* E'\\mon\\M[^;]*,[^;]*\\m(to|from)\\M' then
      raise exception '% on a temporary object together with others is not supported', v_tag
        using errcode = 'feature_not_supported', hint = 'Use two statements.';
    end if;
    return;
  end if;
  perform synapsedb.refuse(v_tag, v_text, v_classes, v_objects);

  -- Where the same text would give another result, the text or what to do after it is changed.
  if v_token is not null then
    if v_token = '-' then
      raise exception '% cannot be replicated: it reads as if it made a temporary table', v_tag
        using errcode = 'feature_not_supported', hint = 'Say CREATE TABLE ... AS in a statement of its own.';
    end if;
    v_detail := coalesce(v_detail, '{}') || jsonb_build_object('at', v_token);
  end if;
  if v_tag in ('CREATE TABLE AS', 'SELECT INTO') then
    v_command := synapsedb.table_definition(v_objects[1]);
    v_detail := jsonb_build_object('at', v_token);
  elsif v_drops[2] = 'mixed' and v_tag <> 'DROP OWNED' or v_tag = 'DROP INDEX' and v_drops[4] <> '' then
    -- An index that a failed CREATE INDEX CONCURRENTLY left is not there, and its name may find another one there.
    v_command := v_drops[4];
  elsif v_tag in ('CREATE FUNCTION', 'CREATE PROCEDURE', 'ALTER FUNCTION', 'ALTER PROCEDURE', 'ALTER ROUTINE')
        and v_text ~* E'\\mfrom\\s+current\\M' then
    v_command := pg_get_functiondef(v_objects[1]);
  elsif v_tag = 'IMPORT FOREIGN SCHEMA' then
    v_command := (select string_agg(synapsedb.table_definition(o), E';\n' order by o) from unnest(v_relations) o);
  elsif v_tag = 'CREATE EXTENSION' then
    v_detail := v_detail || jsonb_build_object('extension', (select e.extname from pg_extension e where e.oid = v_objects[1]));
    v_relations := synapsedb.extension_relations(v_objects[1]);
  elsif v_tag = 'ALTER EXTENSION' then
    v_relations := synapsedb.extension_relations(v_objects[1]);
  elsif v_tag in ('CREATE MATERIALIZED VIEW', 'REFRESH MATERIALIZED VIEW') then
    if v_tag = 'REFRESH MATERIALIZED VIEW' then
      v_command := format('refresh materialized view %s with no data', v_objects[1]::regclass);
    end if;
    select c.oid, coalesce(v_detail, '{}') || jsonb_build_object('contents',
             jsonb_build_array(n.nspname, c.relname, c.oid::regclass::text, pg_get_userbyid(c.relowner)))
      into v_view, v_filled
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.oid = v_objects[1] and c.relkind = 'm' and c.relispopulated;
    v_detail := coalesce(v_filled, v_detail);
  elsif v_tag = 'ALTER TABLE' then
    select m.missing, m.unread into v_missing, v_spread from synapsedb.stored_defaults(v_relations) m;
    if v_missing is not null then
      v_detail := coalesce(v_detail, '{}') || jsonb_build_object('missing', v_missing);
    end if;
  end if;

  -- A long text with many commands is written once in a transaction.
  if not v_nested and length(v_query) > 8000 then
    if synapsedb.recall('written') = pg_current_xact_id()::text then
      v_query := null;
    else
      perform synapsedb.remember('written', pg_current_xact_id()::text);
    end if;
  end if;
  v_settings := synapsedb.settings_now();
  insert into synapsedb.ddl_log (role, tag, ordinal, nested, query, settings, command, detail, logged_at)
    values (current_user, v_tag, v_ordinal, v_nested, v_query, v_settings, v_command, v_detail, clock_timestamp());

  if v_detail ->> 'kind' = 'concurrently' and synapsedb.recall('detached') <> '' then
    v_kept := string_to_array(synapsedb.recall('detached'), '/')::oid[];
    v_detail := null;
    for v_command in
      select format('alter table only %s add constraint %I %s', c.conrelid::regclass, c.conname, pg_get_constraintdef(c.oid))
        from pg_constraint c where c.conrelid = v_kept[1] and c.contype = 'c' and c.oid <> all (v_kept[2:])
    loop
      insert into synapsedb.ddl_log (role, tag, ordinal, nested, query, settings, command, detail, logged_at)
        values (current_user, v_tag, v_ordinal, v_nested, v_query, v_settings, v_command, v_detail, clock_timestamp());
    end loop;
  end if;

  -- What has to follow it: rows that travel as rows, and commands that log themselves.
  if v_tag in ('CREATE TABLE AS', 'SELECT INTO') and v_text ~* E'\\munlogged\\M' then
    v_spread := array[v_objects[1]];
  end if;
  v_rewrites := string_to_array(rtrim(synapsedb.recall('rewrites'), ','), ',');
  if cardinality(v_rewrites) > 0 then
    perform synapsedb.remember('rewrites',
      coalesce((select string_agg(r || ',', '') from unnest(v_rewrites) r where split_part(r, '/', 1) <> v_mine), ''));
    foreach v_rewrite in array v_rewrites loop
      if split_part(v_rewrite, '/', 1) = v_mine
         and not synapsedb.is_rewritten_alike(split_part(v_rewrite, '/', 2)::oid, split_part(v_rewrite, '/', 3)::int, v_text) then
        v_spread := v_spread || split_part(v_rewrite, '/', 2)::oid;
      end if;
    end loop;
  end if;
  if v_drops[3] <> '' then
    v_relations := v_relations || string_to_array(v_drops[3], ',')::oid[];
  end if;
  if v_relations is not null then
    v_began := synapsedb.recall('command');
    perform synapsedb.mend(v_relations, v_tag, v_text);
    perform synapsedb.remember('command', v_began);
  end if;
  if v_spread is not null then
    perform synapsedb.spread_rows(v_spread);
  end if;
  if v_view is not null then
    perform synapsedb.send_contents(v_view);
  end if;
end
$$;

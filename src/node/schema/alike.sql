-- Same text, other result: what a follower would compute otherwise than the writer did.

-- Notes the command number at which an ALTER TABLE begins, so that what it made can be told from what
-- the same transaction made before.
create unlogged table if not exists synapsedb.command_ids (only_row bool);
create or replace function synapsedb.note_command_id() returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_command cid;
  v_at tid;
begin
  perform synapsedb.assert_trusted();
  perform set_config('synapsedb.command', '', false);
  if pg_current_xact_id_if_assigned() is null then
    return;
  end if;
  insert into synapsedb.command_ids values (true) returning cmin, ctid into v_command, v_at;
  delete from synapsedb.command_ids where ctid = v_at;
  perform set_config('synapsedb.command', synapsedb.signature('command', v_command::text) || '=' || v_command, false);
end
$$;

-- Whether a catalog row was written by the ALTER TABLE that is just ending. In doubt, true.
create or replace function synapsedb.is_recent(p_xmin xid, p_cmin cid) returns boolean
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  return ((p_xmin::text::bigint - (pg_current_xact_id()::text::bigint & 4294967295)) & 4294967295) < 2147483648
     and p_cmin::text::bigint >= coalesce(nullif(synapsedb.recall('command'), '')::bigint, 0);
end
$$;

-- Whether an expression or a statement's text gives the same values on every node. By names, and
-- in doubt false: what is called must be immutable, or depend only on settings that travel.
create or replace function synapsedb.is_fixed(p_text text) returns boolean
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text;
begin
  if p_text ~* E'\\m(current_[a-z]+|localtime|localtimestamp|session_user|system_user|user)\\M'
     or p_text ~* E'''\\s*(now|today|tomorrow|yesterday)\\M' or p_text ~* E'::\\s*reg[a-z]+' then
    return false;
  end if;
  for v_name in
    select distinct case when m[1] like '"%' then replace(substr(m[1], 2, length(m[1]) - 2), '""', '"') else lower(m[1]) end
      from regexp_matches(p_text, E'("(?:[^"]|"")+"|[[:alpha:]_\\u0080-\\uffff][\\w$]*)\\s*\\(', 'g') m
  loop
    if exists (select from pg_proc p
                where p.proname = v_name and p.provolatile <> 'i'
                  and not (p.oid < 16384 and v_name in (
                    'to_char', 'to_date', 'to_timestamp', 'to_number', 'date_trunc', 'date_part', 'extract', 'timezone',
                    'timestamptz', 'timestamp', 'date', 'time', 'timetz', 'concat', 'concat_ws', 'format', 'to_json',
                    'to_jsonb', 'json_build_object', 'jsonb_build_object', 'json_build_array', 'jsonb_build_array',
                    'row_to_json', 'array_to_json', 'array_to_string', 'string_to_array', 'quote_literal'))) then
      return false;
    end if;
  end loop;
  return not exists (select from pg_operator o join pg_proc p on p.oid = o.oprcode
                      where o.oid >= 16384 and p.provolatile <> 'i' and strpos(p_text, o.oprname::text) > 0)
     and not exists (select from pg_cast c join pg_proc p on p.oid = c.castfunc
                      where c.oid >= 16384 and p.provolatile <> 'i');
end
$$;

-- Whether the values that a new column got in old rows are the same wherever the command runs.
create or replace function synapsedb.has_fixed_default(p_table oid, p_column int2) returns boolean
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  v_default text;
begin
  if exists (select from pg_attribute a where a.attrelid = p_table and a.attnum = p_column
                and (a.attidentity <> '')) then
    return false;
  end if;
  select coalesce((select pg_get_expr(d.adbin, d.adrelid) from pg_attrdef d
                    where d.adrelid = p_table and d.adnum = p_column),
                  pg_get_expr(t.typdefaultbin, 0), 'null')
    into v_default
    from pg_attribute a join pg_type t on t.oid = a.atttypid
   where a.attrelid = p_table and a.attnum = p_column;
  return synapsedb.is_fixed(v_default);
end
$$;

-- ADD COLUMN ... DEFAULT now() stores one value for all old rows in the catalog and rewrites nothing:
-- those values, for the followers to store too (null where there are none), and the tables whose rows must travel
-- instead, since a superuser who reads such a value there would run a user's code.
create or replace function synapsedb.stored_defaults(p_tables oid[], out missing jsonb, out unread oid[])
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  with recursive family (t) as (
    select o from unnest(p_tables) o
    union select i.inhrelid from family f join pg_inherits i on i.inhparent = f.t),
  columns as (
    select c.oid, n.nspname, c.relname, a.attnum, a.attname, a.attmissingval::text as stored,
           synapsedb.is_plainly_read(a.atttypid) as plain
      from family f
      join pg_class c on c.oid = f.t and c.relpersistence <> 't'
      join pg_namespace n on n.oid = c.relnamespace
      join pg_attribute a on a.attrelid = c.oid and a.atthasmissing and not a.attisdropped
     where synapsedb.is_recent(a.xmin, a.cmin) and not synapsedb.has_fixed_default(c.oid, a.attnum))
  select jsonb_agg(jsonb_build_array(s.nspname, s.relname, s.attname, s.stored) order by s.oid, s.attnum)
           filter (where s.plain),
         array_agg(distinct s.oid) filter (where not s.plain)
    into missing, unread
    from columns s;
end
$$;

-- Whether a rewrite of a table gives the same rows on every node.
create or replace function synapsedb.is_rewritten_alike(p_table oid, p_reason int, p_text text) returns boolean
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  if (select relpersistence from pg_class where oid = p_table) = 't' then
    return true;
  end if;
  if p_reason & 4 <> 0 and not synapsedb.is_fixed(p_text) then
    return false;
  end if;
  return not exists (select from pg_attribute a
                      where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
                        and synapsedb.is_recent(a.xmin, a.cmin) and not synapsedb.has_fixed_default(p_table, a.attnum));
end
$$;

-- Sends a table's rows, all of them, as rows: each follower has run the same command with values of its own.
--
-- With a key from before the command they go as UPDATE by that key (as DELETE and INSERT where a new
-- identity column can only be inserted), else as TRUNCATE and INSERT. It runs as the caller, since
-- constraints and index expressions may call anybody's functions; only what runs no such code is done
-- with more rights: making the copy, emptying, putting triggers and forced row security to sleep.
create or replace function synapsedb.spread_rows(p_tables oid[]) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_table oid;
  v_name text;
  v_any bool;
  v_columns text; v_set text; v_keyed bool; v_identity bool;
begin
  foreach v_table in array p_tables loop
    v_name := v_table::regclass::text;
    select string_agg(quote_ident(a.attname), ', ' order by a.attnum),
           string_agg(format('%1$I = c.%1$I', a.attname), ', ' order by a.attnum)
             filter (where a.attidentity <> 'a' and a.attnum <> all (coalesce(i.indkey::int2[], '{}'))),
           coalesce(bool_or(a.attidentity = 'a' and synapsedb.is_recent(a.xmin, a.cmin)), false),
           r.relreplident in ('d', 'i') and i.indkey is not null
             and not bool_or(a.attnum = any (i.indkey::int2[]) and synapsedb.is_recent(a.xmin, a.cmin))
      into v_columns, v_set, v_identity, v_keyed
      from pg_class r
      join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
      left join pg_index i on i.indexrelid = pg_get_replica_identity_index(r.oid)
     where r.oid = v_table
     group by r.oid, r.relreplident, i.indkey;
    -- Paused first: under forced row security its owner may see none of its rows.
    perform synapsedb.pause_table(v_table, current_user, not v_keyed);
    execute format('select exists (select from only %s)', v_name) into v_any;
    if not v_any then
      perform synapsedb.resume_table(v_table);
      continue;
    end if;
    execute format('insert into pg_temp.synapsedb_copy select ctid::text, %s from only %s', v_columns, v_name);
    if v_keyed and not v_identity then
      execute format('update only %s t set %s from pg_temp.synapsedb_copy c where c.synapsedb_at = t.ctid::text', v_name, v_set);
    else
      if v_keyed then
        execute format('delete from only %s', v_name);
      else
        perform synapsedb.empty_table(v_table);
      end if;
      execute format('insert into %1$s (%2$s) overriding system value select %2$s from pg_temp.synapsedb_copy', v_name, v_columns);
    end if;
    perform synapsedb.resume_table(v_table);
  end loop;
end
$$;

-- Makes room for the copy and puts to sleep what would act on the rows. In the replica role, so that none
-- of it is logged: it is over before the command is.
create or replace function synapsedb.pause_table(p_table oid, p_caller name, p_empties boolean) returns void
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp set session_replication_role = replica set client_min_messages = error
as $$
declare
  v_name text := p_table::regclass::text;
  v_trigger name;
  v_paused name[] := '{}';
begin
  perform synapsedb.assert_trusted();
  if p_empties and exists (select from pg_constraint c
                            where c.contype = 'f' and c.confrelid = p_table and c.conrelid <> p_table) then
    raise exception 'this rewrite of % cannot be replicated: its values differ on each node, it has no key from before, and foreign keys point to it',
      v_name using errcode = 'feature_not_supported',
      hint = 'Add the column without a default, fill it by UPDATE, then set the default.';
  end if;
  drop table if exists pg_temp.synapsedb_copy;
  execute format('create temporary table synapsedb_copy (synapsedb_at text, %s)',
    (select string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' order by a.attnum)
       from pg_attribute a
      where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''));
  execute format('grant all on pg_temp.synapsedb_copy to %I', p_caller);
  for v_trigger in select t.tgname from pg_trigger t where t.tgrelid = p_table and t.tgenabled = 'O' loop
    execute format('alter table only %s disable trigger %I', v_name, v_trigger);
    v_paused := v_paused || v_trigger;
  end loop;
  if (select relforcerowsecurity from pg_class where oid = p_table) then
    execute format('alter table only %s no force row level security', v_name);
    v_paused := ''::name || v_paused;
  end if;
  perform set_config('synapsedb.paused', synapsedb.signature('paused', v_paused::text) || '=' || v_paused::text, false);
end
$$;

create or replace function synapsedb.empty_table(p_table oid) returns void
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp set session_replication_role = replica set client_min_messages = error
as $$
begin
  perform synapsedb.assert_trusted();
  execute format('truncate only %s', p_table::regclass);
end
$$;

create or replace function synapsedb.resume_table(p_table oid) returns void
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp set session_replication_role = replica set client_min_messages = error
as $$
declare
  v_name text := p_table::regclass::text;
  v_trigger name;
begin
  perform synapsedb.assert_trusted();
  foreach v_trigger in array synapsedb.recall('paused')::name[] loop
    if v_trigger = '' then
      execute format('alter table only %s force row level security', v_name);
    else
      execute format('alter table only %s enable trigger %I', v_name, v_trigger);
    end if;
  end loop;
  perform set_config('synapsedb.paused', '', false);
  drop table pg_temp.synapsedb_copy;
end
$$;

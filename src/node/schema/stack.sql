-- Who is calling: the call stack as proof. The event trigger functions run as whoever runs the DDL, so
-- what they use is granted to PUBLIC, and whatever could do harm asks here whether they are the caller.
--
-- A stack can be trusted from its top down to the first text or name that a user chose: the patterns
-- below are anchored at the top and match this schema's own functions and statements only. (Names are
-- printed qualified and quoted, since each function here pins search_path and quote_all_identifiers; only
-- superusers create functions in this schema.)

-- The stack below the function that asks, in English; empty for a command sent by a client. To be assigned to
-- a variable, not called inside a statement, whose text would stand in between. A definer's
-- function, because only a superuser may set lc_messages.
create or replace function synapsedb.stack() returns text
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp set lc_messages = 'C' set quote_all_identifiers = off
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

-- Fails unless the function that asks was called (PERFORM) by an event trigger function of this schema.
create or replace function synapsedb.assert_trusted() returns void
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp set lc_messages = 'C' set quote_all_identifiers = off
as $$
declare
  v_stack text;
begin
  get diagnostics v_stack = pg_context;
  if v_stack !~ (E'^PL/pgSQL function synapsedb\\.assert_trusted\\(\\) line \\d+ at GET DIAGNOSTICS\\n'
      'SQL statement "SELECT synapsedb\\.assert_trusted\\(\\)"\\n'
      'PL/pgSQL function synapsedb\\.[a-z_]+\\([^\\n]*\\) line \\d+ at PERFORM\\n'
      'SQL statement "SELECT synapsedb\\.[a-z_]+\\([^"]*\\)"\\n'
      '(PL/pgSQL function synapsedb\\.spread_rows\\(oid\\[\\]\\) line \\d+ at PERFORM\\n'
      'SQL statement "SELECT synapsedb\\.spread_rows\\([^"]*\\)"\\n)?'
      'PL/pgSQL function synapsedb\\.on_[a-z_]+\\(\\) line \\d+ at PERFORM(\\n|$)') then
    raise exception 'this function is for SynapseDB''s event triggers only'
      using errcode = 'insufficient_privilege';
  end if;
end
$$;

-- Accepts a row of ddl_log only from the one statement below in the functions below.
create or replace function synapsedb.guard_ddl_log() returns trigger
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp set lc_messages = 'C' set quote_all_identifiers = off
as $$
declare
  v_stack text;
begin
  get diagnostics v_stack = pg_context;
  if v_stack !~ (E'^PL/pgSQL function synapsedb\\.guard_ddl_log\\(\\) line \\d+ at GET DIAGNOSTICS\\n'
      'SQL statement "insert into synapsedb\\.ddl_log \\(role, tag, ordinal, nested, query, settings, command, detail, logged_at\\)'
      '\\s+values \\(current_user, v_tag, v_ordinal, v_nested, v_query, v_settings, v_command, v_detail, clock_timestamp\\(\\)\\)"\\n'
      'PL/pgSQL function synapsedb\\.(on_ddl_start\\(\\)|on_ddl_end\\(\\)|log_command\\(text,text,text,jsonb,jsonb\\)) line \\d+ at SQL statement(\\n|$)') then
    raise exception 'synapsedb.ddl_log is written by SynapseDB''s event triggers only'
      using errcode = 'insufficient_privilege';
  end if;
  perform synapsedb.await_stream();
  return new;
end
$$;
do $$
begin
  if not exists (select from pg_trigger where tgrelid = 'synapsedb.ddl_log'::regclass and tgname = 'guard') then
    create trigger guard before insert on synapsedb.ddl_log for each row execute function synapsedb.guard_ddl_log();
  end if;
end
$$;

-- What the event triggers remember from one event to the next lives in settings of the session: these
-- are taken back with a savepoint, as the commands are. Anyone may set them, so each value is signed
-- and holds for this statement only.
create table if not exists synapsedb.node_key (
  only_row bool primary key default true check (only_row),
  key text not null,
  log_hash text
);
do $$
begin
  if not (select relrowsecurity from pg_class where oid = 'synapsedb.node_key'::regclass) then
    alter table synapsedb.node_key enable row level security;
  end if;
end
$$;
insert into synapsedb.node_key (key)
  values (pg_catalog.gen_random_uuid()::text || pg_catalog.gen_random_uuid()::text)
  on conflict do nothing;

create or replace function synapsedb.signature(name text, value text) returns text
  language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
  return (select encode(sha256(convert_to(k.key || '/' || pg_backend_pid() || '/' || extract(epoch from statement_timestamp())
                     || '/' || signature.name || '/' || signature.value || '/' || k.key, 'UTF8')), 'hex')
            from synapsedb.node_key k);
end
$$;
revoke all on function synapsedb.signature(text, text) from public;

create or replace function synapsedb.remember(name text, value text) returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform synapsedb.assert_trusted();
  perform set_config('synapsedb.' || name,
                     case when value = '' then '' else synapsedb.signature(name, value) || '=' || value end, false);
end
$$;

-- Empty where nothing is remembered from this statement.
create or replace function synapsedb.recall(name text) returns text
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_kept text := coalesce(current_setting('synapsedb.' || name, true), '');
  v_value text := substr(v_kept, 66);
begin
  return case when v_value <> '' and left(v_kept, 64) = synapsedb.signature(name, v_value) then v_value else '' end;
end
$$;

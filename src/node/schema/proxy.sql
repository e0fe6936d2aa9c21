-- What the proxy logs itself: commands that no event trigger sees (rule 22).
--
--   synapsedb.log_command(secret text, tag text, command text, settings jsonb, detail jsonb)
--
-- It runs as whoever runs the command, in the same transaction, just before it, and writes one row of
-- ddl_log with that role; the row's command is the whole text. Who does not know the secret is turned
-- away. The secret is bound as a parameter, so that no text shows it, and opens nothing else: whoever
-- learnt it could have followers run, as himself, what he did not run on the writer.

-- Makes or replaces the function for the secret whose SHA-256 is given (hex). For superusers.
create or replace function synapsedb.make_log_command(secret_hash text) returns void
  language plpgsql set search_path = pg_catalog set session_replication_role = replica
as $$
begin
  execute format($make$
create or replace function synapsedb.log_command(secret text, tag text, command text, settings jsonb, detail jsonb)
  returns void language plpgsql set search_path = pg_catalog
as $body$
declare
  v_tag text := tag;
  v_ordinal int := 0;
  v_nested bool := false;
  v_query text := null;
  v_settings jsonb := settings;
  v_command text := command;
  v_detail jsonb := detail;
begin
  if secret is null or encode(sha256(convert_to(secret, 'UTF8')), 'hex') <> %L then
    raise exception 'not for you' using errcode = 'insufficient_privilege';
  end if;
  insert into synapsedb.ddl_log (role, tag, ordinal, nested, query, settings, command, detail, logged_at)
    values (current_user, v_tag, v_ordinal, v_nested, v_query, v_settings, v_command, v_detail, clock_timestamp());
end
$body$
$make$, secret_hash);
  grant execute on function synapsedb.log_command(text, text, text, jsonb, jsonb) to public;
end
$$;
revoke all on function synapsedb.make_log_command(text) from public;

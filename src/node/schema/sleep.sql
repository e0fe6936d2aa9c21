-- Whether the database's stream sleeps on this node (1) or not (0), and the wait of those who would give it
-- something to carry.
--
-- A sequence, since its value is everyone's at once: whoever looks has the newest one, whatever his isolation level
-- and however old his snapshot. It is durable when the transaction that set it is, and no stream carries it.
--
-- The order makes it sound. Whoever is about to log a command first locks ddl_log, as the row itself would, and then
-- looks. The proxy sets the value first, and then asks whether anybody holds that lock. So either it finds him, or
-- he finds the value.
create sequence if not exists synapsedb.asleep as smallint minvalue 0 maxvalue 1 start 0;
revoke all on sequence synapsedb.asleep from public;

create or replace function synapsedb.await_stream() returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_until timestamptz;
begin
  lock table synapsedb.ddl_log in row exclusive mode;
  while (select s.last_value = 1 from synapsedb.asleep s) loop
    v_until := coalesce(v_until, clock_timestamp() + interval '30 s');
    if clock_timestamp() > v_until then
      raise exception 'the database is not replicated at the moment, so it takes no change of its definitions'
        using errcode = 'cannot_connect_now',
              hint = 'It was idle, and SynapseDB''s proxy, which would take it up again, does not answer. Is it running?';
    end if;
    perform pg_sleep(0.01);
  end loop;
end
$$;

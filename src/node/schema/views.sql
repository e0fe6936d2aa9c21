-- Materialized views: what a REFRESH or CREATE put into one on the writer travels as rows.
--
-- A follower that ran the query itself would see other rows than the writer did: the query may call random()
-- or now(), and its snapshot does not see commits which stand before it in the stream and still wait for their
-- majority. So a follower empties the view, and fills it with the very rows that came.

-- What the stream carries them in: a line holds many rows, as the text of a text[] of records; null is the end.
-- Each line is deleted at once; only its insert matters.
create table if not exists synapsedb.view_rows (
  id bigint generated always as identity primary key,
  lines text
);

-- The query that gives a view's rows, each as the text of a record. By record_out and not by a cast, which could be
-- a user's function; and by a whole row that is told apart from a column of the same name.
create or replace function synapsedb.rows_of_view(p_view oid) returns text
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select format('select pg_catalog.textin(pg_catalog.record_out(m.*)) from %s m', p_view::regclass)
$$;

-- Sends the rows of a materialized view, all of them. Planning a query of it would run what its owner has put into
-- an index or a statistic, with the rights of whoever asks, so the planner sees none of them meanwhile. The command
-- holds a lock that keeps everybody else from changing the view.
create or replace function synapsedb.send_contents(p_view oid) returns void
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp set datestyle = 'ISO' set intervalstyle = 'postgres' set extra_float_digits = 3
  set timezone = 'UTC' set bytea_output = 'hex' set lc_monetary = 'C' set xmloption = 'content' set array_nulls = on
as $$
declare
  v_query text := synapsedb.rows_of_view(p_view);
  v_indexed bool := (select c.relhasindex from pg_class c where c.oid = p_view);
  v_statistics oid[] := array(select s.oid from pg_statistic_ext s where s.stxrelid = p_view);
  v_row text;
  v_lines text[] := '{}';
  v_bytes int := 0;
  v_id bigint;
begin
  perform synapsedb.assert_trusted();
  update pg_statistic_ext set stxrelid = 0 where oid = any(v_statistics);
  update pg_class set relhasindex = false where oid = p_view;
  for v_row in execute v_query loop
    v_lines := v_lines || v_row;
    v_bytes := v_bytes + octet_length(v_row);
    if v_bytes >= 262144 or cardinality(v_lines) >= 8192 then
      insert into synapsedb.view_rows (lines) values (v_lines::text) returning id into v_id;
      delete from synapsedb.view_rows where id = v_id;
      v_lines := '{}';
      v_bytes := 0;
    end if;
  end loop;
  update pg_statistic_ext set stxrelid = p_view where oid = any(v_statistics);
  update pg_class set relhasindex = v_indexed where oid = p_view;
  if v_lines <> '{}' then
    insert into synapsedb.view_rows (lines) values (v_lines::text) returning id into v_id;
    delete from synapsedb.view_rows where id = v_id;
  end if;
  insert into synapsedb.view_rows (lines) values (null) returning id into v_id;
  delete from synapsedb.view_rows where id = v_id;
end
$$;

-- Lets rows be inserted into a materialized view, which PostgreSQL refuses: for the rest of this transaction,
-- until seal_view, it is a table. The command before it has emptied the view and holds its strongest lock, so
-- nobody else sees it so. For the superuser's runner.
create or replace function synapsedb.open_view(p_schema text, p_name text) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  update pg_class c set relkind = 'r', relhasrules = false
    from pg_namespace n
   where n.oid = c.relnamespace and n.nspname = p_schema and c.relname = p_name and c.relkind = 'm';
  if not found then
    raise exception 'no materialized view %.% here', p_schema, p_name using errcode = 'undefined_table';
  end if;
end
$$;
revoke all on function synapsedb.open_view(text, text) from public;

-- Ends open_view: it is a materialized view again, and populated.
create or replace function synapsedb.seal_view(p_schema text, p_name text) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  update pg_class c set relkind = 'm', relhasrules = true, relispopulated = true
    from pg_namespace n
   where n.oid = c.relnamespace and n.nspname = p_schema and c.relname = p_name and c.relkind = 'r';
  if not found then
    raise exception 'no materialized view %.% is being filled here', p_schema, p_name using errcode = 'undefined_table';
  end if;
end
$$;
revoke all on function synapsedb.seal_view(text, text) from public;

-- What a command's objects need so that their rows can travel, each as a command that logs itself; and
-- what is refused because it cannot be made equal.

-- The index by which a changed row is told apart in the stream; null where there is none, or where one of its
-- columns is generated, which the stream leaves out.
create or replace function synapsedb.stream_key(p_table oid) returns oid
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select k.key::oid from (select pg_get_replica_identity_index(p_table) as key) k
   where not synapsedb.has_generated(k.key)
$$;

create or replace function synapsedb.has_generated(p_index oid) returns boolean
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select exists (select from pg_index i join pg_attribute a
                     on a.attrelid = i.indrelid and a.attnum = any (i.indkey::int2[]) and a.attgenerated <> ''
                  where i.indexrelid = p_index)
$$;

-- Run as a superuser: a DROP ... CASCADE may take the key of a table whose owner is somebody else.
create or replace function synapsedb.mend(p_relations oid[], p_tag text, p_text text) returns void
  language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_relation record;
  v_part record;
begin
  perform synapsedb.assert_trusted();
  for v_relation in
    select c.oid, c.oid::regclass as name, c.relkind, c.relpersistence, c.relreplident,
           synapsedb.stream_key(c.oid) as key
      from pg_class c
     where c.oid = any (p_relations) and c.relkind in ('r', 'S') and c.relpersistence <> 't'
       and c.relnamespace <> 'synapsedb'::regnamespace
        or 0 = any (p_relations) and c.relkind = 'r' and c.relreplident = 'i'
       and pg_get_replica_identity_index(c.oid) is null
  loop
    if v_relation.relpersistence = 'u' then
      execute format('alter %s %s set logged', case v_relation.relkind when 'S' then 'sequence' else 'table' end, v_relation.name);
      raise notice '% was made a logged one: SynapseDB replicates every table', v_relation.name;
    end if;
    if v_relation.relkind = 'r' and v_relation.key is null
       and (select relreplident <> 'f' from pg_class where oid = v_relation.oid) then
      execute format('alter table %s replica identity full', v_relation.name);
    elsif v_relation.relkind = 'r' and v_relation.relreplident = 'f' and p_tag = 'ALTER TABLE'
          and p_text ~* E'\\mprimary\\s+key\\M' and p_text !~* E'\\mreplica\\s+identity\\M'
          and exists (select from pg_index i where i.indrelid = v_relation.oid and i.indisprimary
                         and i.indimmediate and i.indisvalid
                         and not synapsedb.has_generated(i.indexrelid)) then
      execute format('alter table %s replica identity default', v_relation.name);
    end if;
  end loop;
  if p_tag = 'ALTER TABLE' then
    for v_part in
      with recursive family (t) as (
        select o from unnest(p_relations) o
        union select i.inhrelid from family f join pg_inherits i on i.inhparent = f.t)
      select c.oid::regclass as name, t.tgname as part, 'trigger' as kind
        from family f join pg_class c on c.oid = f.t and c.relpersistence <> 't'
        join pg_trigger t on t.tgrelid = c.oid and t.tgenabled in ('A', 'R') and not t.tgisinternal
      union all
      select c.oid::regclass, r.rulename, 'rule'
        from family f join pg_class c on c.oid = f.t and c.relpersistence <> 't'
        join pg_rewrite r on r.ev_class = c.oid and r.ev_enabled in ('A', 'R')
    loop
      execute format('alter table only %s enable %s %I', v_part.name, v_part.kind, v_part.part);
      raise notice '% % of % was made an ordinary one: rows that SynapseDB applies must not set it off',
        v_part.kind, v_part.part, v_part.name;
    end loop;
  end if;
end
$$;

-- The same for all that a database already holds when this is installed: on each node by itself, in the
-- replica role, so that nothing is logged. Where it has run before it finds nothing to do.
create or replace function synapsedb.adopt() returns void
  language plpgsql set search_path = pg_catalog, pg_temp set session_replication_role = replica
as $$
declare
  v_command text;
begin
  for v_command in
    select format('alter %s %s set logged', case c.relkind when 'S' then 'sequence' else 'table' end, c.oid::regclass)
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relkind = 'r' and c.relpersistence = 'u' and n.nspname <> 'synapsedb'
        or c.relkind = 'S' and c.relpersistence = 'u' and n.nspname <> 'synapsedb'
       and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid
                          and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i'))
    union all
    select format('alter table %s replica identity full', c.oid::regclass)
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relkind = 'r' and c.relpersistence <> 't' and c.relreplident <> 'f' and c.oid >= 16384
       and n.nspname <> 'synapsedb' and synapsedb.stream_key(c.oid) is null
    union all
    select format('alter table only %s enable trigger %I', t.tgrelid::regclass, t.tgname)
      from pg_trigger t where t.tgenabled in ('A', 'R') and not t.tgisinternal
    union all
    select format('alter table only %s enable rule %I', r.ev_class::regclass, r.rulename)
      from pg_rewrite r where r.ev_enabled in ('A', 'R')
  loop
    execute v_command;
  end loop;
end
$$;
revoke all on function synapsedb.adopt() from public;

-- What cannot run alike on the followers, refused before it does harm.
create or replace function synapsedb.refuse(p_tag text, p_text text, p_classes oid[], p_objects oid[]) returns void
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text;
  v_parts text[];
begin
  if p_text ~* E'\\m(to|from|for|authorization|role|user)\\s+session_user\\M'
     and p_tag not in ('CREATE FUNCTION', 'CREATE PROCEDURE', 'CREATE VIEW', 'COMMENT') then
    raise exception '% ... SESSION_USER cannot be replicated: it is another role on a follower', p_tag
      using errcode = 'feature_not_supported', hint = 'Name the role, or say CURRENT_USER.';
  end if;
  if p_tag = 'ALTER TABLE' and exists (
       select from pg_trigger t
        where t.tgdeferrable and t.tgenabled in ('A', 'R') and not t.tgisinternal
          and t.tgrelid in (select o from unnest(p_objects) o
                            union select p.relid from unnest(p_objects) o, pg_partition_tree(o::regclass) p)) then
    raise exception 'a deferrable trigger that fires on replicas cannot be replicated'
      using errcode = 'feature_not_supported', hint = 'Make it NOT DEFERRABLE.';
  end if;
  if pg_my_temp_schema() = 0 then
    return;
  end if;
  if p_tag in ('CREATE TABLE', 'CREATE FOREIGN TABLE') then
    for v_name in
      select m[1] from regexp_matches(p_text, E'\\mlike\\s+((?:"(?:[^"]|"")+"|[[:alpha:]_][\\w$]*)'
                                              '(?:\\s*\\.\\s*(?:"(?:[^"]|"")+"|[[:alpha:]_][\\w$]*))?)', 'gi') m
    loop
      v_parts := parse_ident(v_name, false);
      if (cardinality(v_parts) = 1 or v_parts[1] like 'pg\_temp%')
         and exists (select from pg_class c where c.relnamespace = pg_my_temp_schema()
                        and c.relname = v_parts[cardinality(v_parts)]) then
        raise exception 'CREATE TABLE ... (LIKE %) cannot be replicated: % is a temporary table', v_name, v_name
          using errcode = 'feature_not_supported', hint = 'List the columns.';
      end if;
    end loop;
  end if;
  if exists (select from unnest(p_classes, p_objects) as made (class, object)
               join pg_depend d on d.classid = made.class and d.objid = made.object and d.deptype in ('n', 'a')
              where d.refclassid in ('pg_class'::regclass, 'pg_type'::regclass, 'pg_proc'::regclass)
                and synapsedb.is_temporary(d.refclassid, d.refobjid)
                and not synapsedb.is_temporary(made.class, made.object)) then
    raise exception '% cannot be replicated: it makes a lasting object that depends on a temporary one', p_tag
      using errcode = 'feature_not_supported';
  end if;
end
$$;

-- The tables and sequences of an extension.
create or replace function synapsedb.extension_relations(p_extension oid) returns oid[]
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select array_agg(c.oid)
    from pg_depend d join pg_class c on c.oid = d.objid
   where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_extension'::regclass
     and d.refobjid = p_extension and d.deptype = 'e' and c.relkind in ('r', 'S')
$$;

-- CREATE [FOREIGN] TABLE from the catalog, without constraints: for CREATE TABLE AS, which has none, and
-- IMPORT FOREIGN SCHEMA, which has NOT NULL and defaults.
create or replace function synapsedb.table_definition(p_table oid) returns text
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  v_columns text;
  v_rest text;
begin
  select string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod))
           || coalesce((select ' options (' || string_agg(format('%I %L', split_part(o, '=', 1), substr(o, strpos(o, '=') + 1)), ', ') || ')'
                          from unnest(a.attfdwoptions) o), '')
           || case when a.attcollation <> t.typcollation then (select format(' collate %I.%I', n.nspname, l.collname)
                from pg_collation l join pg_namespace n on n.oid = l.collnamespace where l.oid = a.attcollation) else '' end
           || case when a.attcompression = 'p' then ' compression pglz' when a.attcompression = 'l' then ' compression lz4' else '' end
           || case when a.attnotnull then ' not null' else '' end
           || coalesce((select case when a.attgenerated = 's' then format(' generated always as (%s) stored', pg_get_expr(d.adbin, d.adrelid))
                                    else format(' default %s', pg_get_expr(d.adbin, d.adrelid)) end
                          from pg_attrdef d where d.adrelid = a.attrelid and d.adnum = a.attnum), ''),
         ', ' order by a.attnum)
    into v_columns
    from pg_attribute a join pg_type t on t.oid = a.atttypid
   where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped;
  select case when c.relkind = 'f' then (
           select format(' server %I', s.srvname)
                  || coalesce((select ' options (' || string_agg(format('%I %L', split_part(o, '=', 1), substr(o, strpos(o, '=') + 1)), ', ') || ')'
                                 from unnest(f.ftoptions) o), '')
             from pg_foreign_table f join pg_foreign_server s on s.oid = f.ftserver where f.ftrelid = c.oid)
         else coalesce((select format(' using %I', m.amname) from pg_am m where m.oid = c.relam), '')
              || coalesce((select ' with (' || string_agg(format('%s=%L', split_part(o, '=', 1), substr(o, strpos(o, '=') + 1)), ', ') || ')'
                             from (select unnest(c.reloptions) union all
                                   select 'toast.' || unnest(t.reloptions) from pg_class t where t.oid = c.reltoastrelid) x (o)), '')
              || coalesce((select format(' tablespace %I', s.spcname) from pg_tablespace s where s.oid = c.reltablespace), '')
         end
    into v_rest
    from pg_class c where c.oid = p_table;
  return format('create %stable %s (%s)%s',
                case when (select relkind from pg_class where oid = p_table) = 'f' then 'foreign ' else '' end,
                p_table::regclass, coalesce(v_columns, ''), v_rest);
end
$$;

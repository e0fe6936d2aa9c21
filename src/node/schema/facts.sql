-- What the applier must know of a follower's table. Under the applier's own search path an operator of a user's
-- could fit a comparison better than PostgreSQL's, so nothing of this is asked outside of these functions. (pg_temp
-- comes last here and everywhere: where it is not named it comes first, and a view of a user's called pg_class with it.)

-- Whether something that PostgreSQL evaluates runs no text of a user's and calls nothing by a name that a user
-- gave: written in C, and immutable. Of PostgreSQL's own, some more: those with a body that was parsed when the
-- server was made, and those that depend on the time or a setting but take and give plain values only. (Others
-- run a query given as text, call casts that users made to json, draw from sequences, change settings.)
create or replace function synapsedb.is_harmless(p_function oid) returns bool
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  select coalesce((
    select case
        when p.oid >= 16384 then l.lanname in ('internal', 'c') and p.provolatile = 'i'
        when l.lanname = 'sql' and p.prosqlbody is null or l.lanname not in ('internal', 'c', 'sql') then false
        when p.provolatile = 'i' then true
        when p.provolatile = 'v' then p.proname in ('random', 'clock_timestamp', 'timeofday', 'gen_random_uuid')
        else p.proname in ('concat', 'concat_ws', 'format', 'array_to_string', 'now')
          or p.proname not in ('ts_rewrite', 'ts_stat') and not p.proretset
         and p.prorettype = any(v.plain) and p.proargtypes::oid[] <@ v.plain
      end
      from pg_proc p join pg_language l on l.oid = p.prolang,
           (select array['bool', 'int2', 'int4', 'int8', 'float4', 'float8', 'numeric', 'text', 'varchar', 'bpchar',
                         'date', 'time', 'timetz', 'timestamp', 'timestamptz', 'interval', 'uuid', 'bytea', 'money',
                         'tsvector', 'tsquery', 'regconfig', 'jsonb', 'inet', 'cidr', 'tsrange', 'tstzrange',
                         'daterange']::regtype[]::oid[] as plain) v
     where p.oid = p_function), false)
$$;

-- Whether an expression, as the catalog keeps it, holds only kinds of nodes of which it is known what they call:
-- the functions, operators and types that synapsedb.runs_user_code reads from it.
create or replace function synapsedb.is_understood(p_tree text) returns bool
  language sql immutable set search_path = pg_catalog, pg_temp
as $$
  select not exists (
    select from regexp_matches(p_tree, '\{([A-Z_0-9]+)', 'g') m
     where m[1] not in ('VAR', 'CONST', 'FUNCEXPR', 'NAMEDARGEXPR', 'OPEXPR', 'DISTINCTEXPR', 'NULLIFEXPR',
       'SCALARARRAYOPEXPR', 'BOOLEXPR', 'FIELDSELECT', 'RELABELTYPE', 'COERCEVIAIO', 'ARRAYCOERCEEXPR', 'COLLATEEXPR',
       'COLLATE', 'CASEEXPR', 'CASE', 'CASEWHEN', 'WHEN', 'CASETESTEXPR', 'ARRAYEXPR', 'ARRAY', 'ROWEXPR', 'ROW',
       'COALESCEEXPR', 'COALESCE', 'MINMAXEXPR', 'MINMAX', 'SQLVALUEFUNCTION', 'NULLTEST', 'BOOLEANTEST',
       'COERCETODOMAIN', 'COERCETODOMAINVALUE', 'SUBSCRIPTINGREF'))
$$;

-- Whether making a value of a type from its text runs nothing but PostgreSQL's own and extensions' C. In doubt false:
-- any check of a domain and any range of a user's counts, wherever in the type it hides.
create or replace function synapsedb.is_plainly_read(p_type oid) returns bool
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  with recursive parts (id) as (
    select p_type
    union
    select x.id
      from parts p join pg_type t on t.oid = p.id
      cross join lateral (
        select t.typbasetype as id union all select t.typelem
        union all select a.atttypid from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0
        union all select r.rngsubtype from pg_range r where t.oid in (r.rngtypid, r.rngmultitypid)) x
     where x.id <> 0)
  select not exists (
    select from parts p
      left join pg_type t on t.oid = p.id
      left join pg_proc f on f.oid = t.typinput
      left join pg_language l on l.oid = f.prolang
     where l.lanname is null or l.lanname not in ('internal', 'c')
        or t.typtype in ('r', 'm') and t.oid >= 16384
        or exists (select from pg_constraint k where k.contypid = t.oid and k.contype <> 'n'))
$$;

-- Whether writing or finding a row of a table may run code that is not PostgreSQL's own or an extension's in C. What
-- is looked at is all that may be evaluated: column types and what they are made of, constraints, generated
-- columns, indexes and partition keys, and what planning evaluates beforehand (index predicates, statistics).
-- pg_depend would not do: it names neither what a type leads to nor PostgreSQL's own functions.
create or replace function synapsedb.runs_user_code(p_table oid) returns bool
  language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  v_family oid[] := array(select p_table union select h.relid::oid from pg_partition_ancestors(p_table) h);
  v_trees text[];
  v_types oid[];
  v_seen oid[] := '{}';
  v_classes oid[];
  v_functions oid[] := '{}';
  v_operators oid[];
begin
  if exists (select from pg_trigger t where t.tgrelid = p_table and t.tgenabled in ('A', 'R') and not t.tgisinternal)
     or exists (select from pg_rewrite r where r.ev_class = p_table and r.ev_enabled in ('A', 'R')) then
    return true;
  end if;
  v_trees := array(
    select k.conbin::text from pg_constraint k where k.conrelid = p_table
    union all
    select d.adbin::text from pg_attrdef d
      join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum and a.attgenerated <> ''
     where d.adrelid = p_table
    union all
    select x.tree from pg_index i, unnest(array[i.indexprs::text, i.indpred::text]) x(tree) where i.indrelid = p_table
    union all
    select p.partexprs::text from pg_partitioned_table p where p.partrelid = any(v_family)
    union all
    select s.stxexprs::text from pg_statistic_ext s where s.stxrelid = p_table);
  v_operators := array(select o from pg_constraint k, unnest(k.conexclop) o where k.conrelid = p_table);
  v_classes := array(
    select o from pg_index i, unnest(i.indclass::oid[]) o where i.indrelid = p_table
    union
    select o from pg_partitioned_table p, unnest(p.partclass::oid[]) o where p.partrelid = any(v_family));
  v_types := array(select a.atttypid from pg_attribute a where a.attrelid = p_table and a.attnum > 0
                   union select t from pg_opclass c, unnest(array[c.opcintype, c.opckeytype]) t where c.oid = any(v_classes));
  loop
    v_trees := array_remove(v_trees, null);
    if not (select coalesce(bool_and(synapsedb.is_understood(t)), true) from unnest(v_trees) t) then
      return true;
    end if;
    v_functions := v_functions || array(
      select m[1]::oid from unnest(v_trees) t, regexp_matches(t, ':funcid (\d+)', 'g') m);
    v_operators := v_operators || array(
      select m[1]::oid from unnest(v_trees) t, regexp_matches(t, ':opno (\d+)', 'g') m);
    v_types := array(
      select x from unnest(v_types || array(
        select m[1]::oid from unnest(v_trees) t, regexp_matches(t, ':[a-z_]*(?:type|typeid) (\d+)', 'gi') m)) x
       where x <> 0 except select s from unnest(v_seen) s);
    exit when v_types = '{}';
    v_seen := v_seen || v_types;
    -- What the new types lead to: what a domain checks, how a range and a type of its own work, what is inside.
    v_trees := array(select k.conbin::text from pg_constraint k where k.contypid = any(v_types) and k.contypid <> 0);
    v_classes := v_classes
      || array(select c.oid from pg_opclass c where c.opcintype = any(v_types) and c.oid >= 16384)
      || array(select r.rngsubopc from pg_range r where r.rngtypid = any(v_types));
    v_functions := v_functions || array(
      select f from pg_range r, unnest(array[r.rngcanonical::oid, r.rngsubdiff::oid]) f
       where r.rngtypid = any(v_types) and f <> 0);
    -- How values are read and written may depend on settings; that it is written in C is enough.
    if exists (
      select from pg_type t, unnest(array[t.typinput::oid, t.typoutput::oid, t.typreceive::oid, t.typsend::oid,
                                          t.typmodin::oid, t.typmodout::oid, t.typsubscript::oid]) f
        join pg_proc p on p.oid = f join pg_language l on l.oid = p.prolang
       where t.oid = any(v_types) and l.lanname not in ('internal', 'c')) then
      return true;
    end if;
    v_types := array(
      select x from pg_type t, unnest(array[t.typbasetype, t.typelem]) x where t.oid = any(v_types)
      union
      select a.atttypid from pg_type t join pg_attribute a on a.attrelid = t.typrelid and a.attnum > 0
       where t.oid = any(v_types) and t.typtype = 'c'
      union
      select x from pg_range r, unnest(array[r.rngsubtype, r.rngtypid]) x
       where r.rngtypid = any(v_types) or r.rngmultitypid = any(v_types));
  end loop;
  -- What stands in an operator family is called whatever the family is for. Users' own are superusers' work, but
  -- their functions need not be.
  if exists (
    select from pg_opclass c
      join lateral (
        select m.amproc::oid as f from pg_amproc m where m.amprocfamily = c.opcfamily
        union all
        select o.oprcode::oid from pg_amop m join pg_operator o on o.oid = m.amopopr where m.amopfamily = c.opcfamily
      ) x on true
      join pg_proc p on p.oid = x.f join pg_language l on l.oid = p.prolang
     where c.oid = any(v_classes) and l.lanname not in ('internal', 'c')
       and not (p.oid < 16384 and p.prosqlbody is not null)) then
    return true;
  end if;
  return exists (
    select from (select unnest(v_functions) union
                 select o.oprcode::oid from pg_operator o where o.oid = any(v_operators)) x(f)
     where not synapsedb.is_harmless(x.f));
end
$$;

-- How a table's owner is lent, for a moment, the rights that he lacks on it, its schema and those of its types,
-- and how each list of rights becomes again exactly what it was. For the superuser's runner, both in one
-- transaction, so nobody else sees them lent. Null where he lacks none.
create or replace function synapsedb.rights_to_lend(p_table oid, out lend text, out take_back text)
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  with t as (select c.oid, c.relowner, c.relacl, c.relnamespace from pg_class c where c.oid = p_table),
  needed as (
    select t.relnamespace as id from t
    union
    select y.typnamespace from pg_attribute a join pg_type y on y.oid = a.atttypid where a.attrelid = p_table and a.attnum > 0
    union
    select o.oprnamespace from pg_index i, unnest(i.indclass::oid[]) k
      join pg_opclass c on c.oid = k
      join pg_amop m on m.amopfamily = c.opcfamily and m.amoplefttype = c.opcintype and m.amoprighttype = c.opcintype
      join pg_operator o on o.oid = m.amopopr
     where i.indrelid = p_table),
  changes as (
    select format('update pg_class set relacl = null where oid = %s', t.oid) as there,
           format('update pg_class set relacl = %L where oid = %s', t.relacl, t.oid) as back
      from t
     where not (has_table_privilege(t.relowner, t.oid, 'select') and has_table_privilege(t.relowner, t.oid, 'insert')
                and has_table_privilege(t.relowner, t.oid, 'update') and has_table_privilege(t.relowner, t.oid, 'delete'))
    union all
    select format('update pg_namespace set nspacl = coalesce(nspacl, acldefault(''n'', nspowner)) || makeaclitem(%s, nspowner, ''usage'', false) where oid = %s', t.relowner, n.oid),
           format('update pg_namespace set nspacl = %L where oid = %s', n.nspacl, n.oid)
      from t, needed e join pg_namespace n on n.oid = e.id
     where not has_schema_privilege(t.relowner, n.oid, 'usage'))
  select string_agg(c.there, '; '), string_agg(c.back, '; ') from changes c
$$;

-- One row per column; the fields are those of `TableFacts` and `ColumnFacts` in src/node/apply/facts.rs.
create or replace function synapsedb.table_facts(p_schema text, p_table text)
  returns table (name text, owner text, user_code bool, plain text, quoted text, type_name text,
                 identity_always bool, generated bool, equals text, forced_security bool, lend text, take_back text,
                 building bool)
  language sql stable set search_path = pg_catalog, pg_temp
as $$
with c as materialized (
  select c.*, synapsedb.runs_user_code(c.oid) as user_code, r.lend, r.take_back
    from pg_class c join pg_namespace n on n.oid = c.relnamespace and n.nspname = p_schema
    join lateral synapsedb.rights_to_lend(c.oid) r on true
   where c.relname = p_table)
select quote_ident(p_schema) || '.' || quote_ident(c.relname),
       pg_get_userbyid(c.relowner)::text,
       c.user_code,
       a.attname::text,
       quote_ident(a.attname),
       quote_ident(tn.nspname) || '.' || quote_ident(t.typname),
       a.attidentity = 'a',
       a.attgenerated <> '',
       (select quote_ident(onsp.nspname) || '.' || o.oprname
          from pg_index i
          join lateral generate_series(0, i.indnkeyatts - 1) as k(n) on i.indkey[k.n] = a.attnum
          join pg_opclass oc on oc.oid = i.indclass[k.n]
          join pg_amop m on m.amopfamily = oc.opcfamily and m.amoplefttype = oc.opcintype
           and m.amoprighttype = oc.opcintype and m.amopstrategy = 3
          join pg_operator o on o.oid = m.amopopr
          join pg_namespace onsp on onsp.oid = o.oprnamespace
         where i.indexrelid = pg_get_replica_identity_index(c.oid) limit 1),
       c.relrowsecurity and c.relforcerowsecurity,
       c.lend, c.take_back,
       exists (select from synapsedb.pending_indexes)
  from c
  left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  left join pg_type t on t.oid = a.atttypid
  left join pg_namespace tn on tn.oid = t.typnamespace
 order by a.attnum
$$;

-- Says that a transaction of the applier's found another number of rows than it had to change.
create or replace function synapsedb.not_found(p_found text, p_wanted text) returns text
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception '% rows were changed where % should have been', length(p_found), length(p_wanted) using errcode = 'data_exception';
end
$$;

-- Until the transaction ends, no index of the table comes into use that is not in the catalog now: a build waits
-- for whoever holds this lock before it lets rows into the index. (In a function, since LOCK by itself is
-- refused where no BEGIN was said.)
create or replace function synapsedb.hold_still(p_schema text, p_table text) returns void
  language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if to_regclass(format('%I.%I', p_schema, p_table)) is not null then
    execute format('lock table only %I.%I in row exclusive mode', p_schema, p_table);
  end if;
end
$$;

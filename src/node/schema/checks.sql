-- Checks out of force on a follower. A CHECK of a table or a domain is evaluated wherever a row is written, and
-- PostgreSQL does not see to it that it says the same everywhere and at all times: it may name the time, the user or
-- a setting, and a domain that is NOT NULL holds NULLs that came out of an outer join. The writer's word holds.

-- What takes the checks of a table and of all domains in its columns out of force, and what puts back exactly what
-- was there. For the superuser's runner, both in one transaction, so nobody else ever sees it. (Neither what NOT NULL
-- says of a column nor a partition's bounds: those are the same everywhere.) Null where there are none.
create or replace function synapsedb.checks_to_lift(p_schema text, p_table text, out lift text, out put_back text)
  language sql stable set search_path = pg_catalog, pg_temp
as $$
  with recursive c as materialized (
    select c.oid, c.relchecks
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where n.nspname = p_schema and c.relname = p_table),
  types(id) as (
    select x.id
      from c cross join lateral (
        select a.atttypid as id from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        union all
        select m[1]::oid
          from (select d.adbin::text from pg_attrdef d where d.adrelid = c.oid
                union all
                select t from pg_index i, unnest(array[i.indexprs::text, i.indpred::text]) t where i.indrelid = c.oid) e(tree),
               regexp_matches(e.tree, ':[a-z_]*(?:type|typeid) (\d+)', 'gi') m) x
    union
    select x.id
      from types y join pg_type t on t.oid = y.id
      cross join lateral (
        select t.typbasetype as id union all select t.typelem
        union all select a.atttypid from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0
        union all select r.rngsubtype from pg_range r where t.oid in (r.rngtypid, r.rngmultitypid)) x
     where x.id <> 0),
  lists as (
    select (select string_agg(k.oid::text, ', ') from c join pg_constraint k on k.conrelid = c.oid
             where k.contype = 'c') as checks,
           (select string_agg(k.oid::text, ', ') from types y join pg_constraint k on k.contypid = y.id
             where k.contype = 'c') as domains,
           (select string_agg(t.oid::text, ', ') from types y join pg_type t on t.oid = y.id and t.typnotnull) as strict),
  changes as (
    -- A check is made one of no kind that PostgreSQL knows; the count must change at the same time, else it warns.
    select format('with k as (update pg_constraint set contype = ''-'' where oid in (%s)) '
                  'update pg_class set relchecks = 0 where oid = %s', l.checks, c.oid) as lift,
           format('with k as (update pg_constraint set contype = ''c'' where oid in (%s)) '
                  'update pg_class set relchecks = %s where oid = %s', l.checks, c.relchecks, c.oid) as put_back
      from c, lists l where c.relchecks > 0 and l.checks is not null
    union all
    select format('update pg_constraint set contype = ''-'' where oid in (%s)', l.domains),
           format('update pg_constraint set contype = ''c'' where oid in (%s)', l.domains)
      from lists l where l.domains is not null
    union all
    select format('update pg_type set typnotnull = false where oid in (%s)', l.strict),
           format('update pg_type set typnotnull = true where oid in (%s)', l.strict)
      from lists l where l.strict is not null)
  select string_agg(x.lift, '; '), string_agg(x.put_back, '; ') from changes x
$$;

-- What a database's names stand for, for sql/catalog.rs: one row a name, one SELECT, no side effect.
--
-- Columns: kind, schema (of relations only), name, hides (running or writing it may run code that is
-- not known or does something to the session), read_hides (reading it may), unreadable (a query with
-- it is not provably read-only), draws (writing it takes values of a sequence), own (the user's own,
-- not the server's), elsewhere (its values may be of a type whose OID differs from node to node), anything
-- (running or reading it may read any table), tables (of a relation, schema and name in turn: those without which
-- it would be another).
-- OIDs below 16384 are the server's own objects.

with recursive
-- Volatile, yet the same on any node and without a trace: what catalog.rs lists as READABLE.
readable(name) as (values
  ('clock_timestamp'), ('gen_random_uuid'), ('pg_sleep'), ('pg_sleep_for'), ('pg_sleep_until'),
  ('statement_timestamp'), ('timeofday'), ('uuidv4'), ('uuidv7')),
-- Not volatile, yet bound to their session, transaction or node: what catalog.rs lists as BOUND.
bound(name) as (values
  ('inet_client_addr'), ('inet_client_port'), ('inet_server_addr'), ('inet_server_port'),
  ('ts_rewrite'), ('ts_stat'), ('txid_current'), ('txid_current_if_assigned'),
  ('txid_current_snapshot'), ('txid_visible_in_snapshot')),
-- Likewise nearly all that is called pg_, but for what catalog.rs lists as PLAIN.
plain(name) as (values
  ('pg_char_to_encoding'), ('pg_client_encoding'), ('pg_column_compression'), ('pg_column_size'),
  ('pg_encoding_max_length'), ('pg_encoding_to_char'), ('pg_input_error_info'),
  ('pg_input_is_valid'), ('pg_size_bytes'), ('pg_size_pretty'), ('pg_sleep'), ('pg_sleep_for'),
  ('pg_sleep_until')),
-- OIDs differ from node to node, so what only takes or gives them belongs to the writer.
node_type(oid) as (
  select oid from pg_catalog.pg_type
   where typnamespace = 'pg_catalog'::regnamespace
     and typname in ('oid', 'xid', 'xid8', 'cid', 'tid', 'regproc', 'regprocedure', 'regoper', 'regoperator',
       'regclass', 'regcollation', 'regtype', 'regrole', 'regnamespace', 'pg_snapshot', 'txid_snapshot')),
node_bound(name) as (
  select p.proname from pg_catalog.pg_proc p
   where p.pronamespace = 'pg_catalog'::regnamespace
   group by p.proname
  having bool_and(p.prorettype in (select oid from node_type)
                  or exists (select from node_type t where t.oid = any (p.proargtypes)))),
-- Functions of the server that do something to their session: what builtins.rs knows by name.
effects(name) as (values
  ('array_in'), ('array_recv'), ('currval'), ('cursor_to_xml'), ('cursor_to_xmlschema'),
  ('database_to_xml'), ('database_to_xml_and_xmlschema'), ('database_to_xmlschema'), ('domain_in'),
  ('domain_recv'), ('lastval'), ('multirange_in'), ('multirange_recv'), ('pg_advisory_lock'),
  ('pg_advisory_lock_shared'), ('pg_advisory_unlock'), ('pg_advisory_unlock_all'),
  ('pg_advisory_unlock_shared'), ('pg_backup_start'), ('pg_backup_stop'),
  ('pg_copy_logical_replication_slot'), ('pg_copy_physical_replication_slot'),
  ('pg_create_logical_replication_slot'), ('pg_create_physical_replication_slot'),
  ('pg_replication_origin_session_reset'), ('pg_replication_origin_session_setup'),
  ('pg_replication_origin_xact_reset'), ('pg_replication_origin_xact_setup'),
  ('pg_try_advisory_lock'), ('pg_try_advisory_lock_shared'), ('query_to_xml'),
  ('query_to_xml_and_xmlschema'), ('query_to_xmlschema'), ('range_in'), ('range_recv'),
  ('record_in'), ('record_recv'), ('schema_to_xml'), ('schema_to_xml_and_xmlschema'),
  ('schema_to_xmlschema'), ('set_config'), ('setseed'), ('setval'), ('table_to_xml'),
  ('table_to_xml_and_xmlschema'), ('table_to_xmlschema'), ('ts_rewrite'), ('ts_stat')),
trusted_language(oid) as (
  select oid from pg_catalog.pg_language where lanname in ('internal', 'c')),
-- Functions that may do anything: the user's volatile ones, and those whose text belies their label.
plain_wild(oid) as (
  select p.oid from pg_catalog.pg_proc p
   where p.oid >= 16384
     and (p.provolatile = 'v'
          or p.prolang not in (select oid from trusted_language)
             and p.prosrc ~* '\m(set_config|setval|nextval|pg_notify|notify|listen|pg_(try_)?advisory\w*|dblink\w*|lo_\w+|query_to_xml\w*|execute|setseed|currval|lastval)\M')),
wild(oid) as (
  select oid from plain_wild
  union
  select a.aggfnoid from pg_catalog.pg_aggregate a
   where exists (select from plain_wild w where w.oid in (a.aggtransfn, a.aggfinalfn, a.aggcombinefn,
                   a.aggserialfn, a.aggdeserialfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn))),
hiding(oid) as (
  select oid from wild
  union
  select oid from pg_catalog.pg_proc where oid < 16384 and proname in (select name from effects)),
volatile(oid) as (
  select oid from hiding
  union
  select oid from pg_catalog.pg_proc
   where oid < 16384 and provolatile = 'v' and proname not in (select name from readable)),
unreadable(oid) as (
  select oid from volatile
  union
  select oid from pg_catalog.pg_proc
   where oid < 16384
     and (proname in (select name from bound)
          or proname in (select name from node_bound)
          or proname ~ '^pg_' and proname not in (select name from plain))),
-- Expressions that a relation or type carries, and the functions and relations they use.
trees(relation, source, tree) as (
  select ev_class, 'rule', ev_action::text || coalesce(ev_qual::text, '')
    from pg_catalog.pg_rewrite where ev_class >= 16384
  union all
  select polrelid, 'policy', concat(polqual::text, polwithcheck::text) from pg_catalog.pg_policy
  union all
  select d.adrelid, case when a.attgenerated = '' then 'default' else 'generated' end, d.adbin::text
    from pg_catalog.pg_attrdef d
    join pg_catalog.pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
  union all
  select conrelid, 'check', conbin::text from pg_catalog.pg_constraint where contype = 'c' and conrelid <> 0
  union all
  select indrelid, 'index', concat(indexprs::text, indpred::text) from pg_catalog.pg_index
   where indrelid >= 16384 and (indexprs is not null or indpred is not null)
  union all
  select tgrelid, 'trigger', tgqual::text from pg_catalog.pg_trigger where tgqual is not null),
calls(relation, source, function) as (
  select t.relation, t.source, m[1]::oid
    from trees t, regexp_matches(t.tree, ':(?:funcid|opfuncid|aggfnoid|winfnoid|tsmhandler) ([0-9]+)', 'g') m
  union
  select tgrelid, 'trigger', tgfoid from pg_catalog.pg_trigger where not tgisinternal),
-- Types whose values are checked by such functions: domains, and what is made of them.
checked_type(oid) as (
  select c.contypid from pg_catalog.pg_constraint c
   where c.contype = 'c' and c.contypid <> 0
     and exists (select from regexp_matches(c.conbin::text, ':(?:funcid|opfuncid) ([0-9]+)', 'g') m
                  where m[1]::oid in (select oid from unreadable))
  union
  select t.oid from checked_type c join lateral (
    select d.oid from pg_catalog.pg_type d where c.oid in (d.typbasetype, d.typelem)
    union all
    select r.reltype from pg_catalog.pg_attribute a join pg_catalog.pg_class r on r.oid = a.attrelid
     where a.atttypid = c.oid and not a.attisdropped and r.reltype <> 0
    union all
    select g.rngtypid from pg_catalog.pg_range g where g.rngsubtype = c.oid) t on true),
-- Relations that hide something themselves, and those that reach one.
uses(relation, used) as (
  select t.relation, m[1]::oid
    from trees t, regexp_matches(t.tree, ':relid ([0-9]+)', 'g') m
   where t.source in ('rule', 'policy') and m[1]::oid <> t.relation
  union
  select inhparent, inhrelid from pg_catalog.pg_inherits),
cascades(relation, used) as (
  select confrelid, conrelid from pg_catalog.pg_constraint
   where contype = 'f' and (confdeltype in ('c', 'n', 'd') or confupdtype in ('c', 'n', 'd'))),
hiding_relation(oid) as (
  select relation from calls where function in (select oid from hiding)
  union
  select oid from pg_catalog.pg_class where relkind = 'f'
  union
  -- Its rule calls set_config.
  select 'pg_catalog.pg_settings'::regclass::oid
  union
  select attrelid from pg_catalog.pg_attribute
   where atttypid in (select oid from checked_type) and attnum > 0 and attrelid >= 16384
  union
  select u.relation from hiding_relation h
    join (select * from uses union select * from cascades) u on u.used = h.oid),
hiding_reader(oid) as (
  select relation from calls
   where source in ('rule', 'policy', 'generated') and function in (select oid from hiding)
  union
  select oid from pg_catalog.pg_class where relkind = 'f'
  union
  select u.relation from hiding_reader h join uses u on u.used = h.oid),
unreadable_relation(oid) as (
  select c.relation from calls c
   where c.source in ('rule', 'policy', 'generated') and c.function in (select oid from unreadable)
  union
  select relation from trees
   where source = 'rule' and (tree ~ ':hasForUpdate true' or tree ~ ':rowMarks \(\{')
  union
  select c.oid from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
   where c.oid < 16384 or c.relkind in ('f', 'S') or c.relpersistence = 't'
      or n.nspname in ('pg_catalog', 'information_schema', 'pg_toast', 'synapsedb')
  union
  select u.relation from unreadable_relation r join uses u on u.used = r.oid),
drawing_relation(oid) as (
  select relation from calls where source = 'default'
     and function in (select oid from pg_catalog.pg_proc where oid < 16384 and proname = 'nextval')
  union
  select attrelid from pg_catalog.pg_attribute where attidentity <> '' and attrelid >= 16384
  union
  select u.relation from drawing_relation d join uses u on u.used = d.oid),
-- Code that may read tables which no text names: all of the user's but what C is said to be immutable.
reader(oid) as (
  select p.oid from pg_catalog.pg_proc p
   where p.oid >= 16384 and p.prokind <> 'a'
     and (p.prolang not in (select oid from trusted_language) or p.provolatile <> 'i')
  union
  select a.aggfnoid from pg_catalog.pg_aggregate a join pg_catalog.pg_proc p
      on p.oid in (a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn, a.aggmtransfn,
                   a.aggminvtransfn, a.aggmfinalfn)
   where p.oid >= 16384 and (p.prolang not in (select oid from trusted_language) or p.provolatile <> 'i')),
reaches(relation, used) as (
  select oid, oid from pg_catalog.pg_class where relkind in ('r', 'p', 'v', 'm') and oid >= 16384
  union
  select r.relation, u.used from reaches r join uses u on u.relation = r.used),
reached(relation, tables) as (
  select r.relation, array_agg(part order by r.used, part_number) from reaches r
    join pg_catalog.pg_class b on b.oid = r.used join pg_catalog.pg_namespace s on s.oid = b.relnamespace
   cross join lateral unnest(array[s.nspname::text, b.relname::text]) with ordinality parts(part, part_number)
   group by r.relation),
reading_relation(oid) as (
  select distinct r.relation from reaches r join calls f on f.relation = r.used
   where f.source in ('rule', 'policy') and f.function in (select oid from reader)),
-- Types, a domain's being what it is made of, that have another OID on each node.
resolved_type(oid, base) as (
  select oid, oid from pg_catalog.pg_type where typtype <> 'd'
  union all
  select d.oid, r.base from pg_catalog.pg_type d join resolved_type r on r.oid = d.typbasetype where d.typtype = 'd'),
foreign_type(oid) as (select oid from resolved_type where base >= 16384),
foreign_relation(oid) as (
  select distinct attrelid from pg_catalog.pg_attribute
   where attnum > 0 and atttypid in (select oid from foreign_type)),
-- Code that runs without being named: implicit casts, input and output of types, comparison. What supports
-- an index of another kind than btree and hash is C and called by that index alone: pgvector's is volatile.
implicit(hides) as (
  select exists (select from pg_catalog.pg_cast where castfunc in (select oid from wild)
                    and (castcontext <> 'e' or casttarget < 16384))
      or exists (select from pg_catalog.pg_type t, wild w
                  where w.oid in (t.typinput, t.typoutput, t.typreceive, t.typsend, t.typmodin))
      or exists (select from pg_catalog.pg_amproc a
                   join pg_catalog.pg_opfamily f on f.oid = a.amprocfamily
                   join pg_catalog.pg_am m on m.oid = f.opfmethod
                   join pg_catalog.pg_proc p on p.oid = a.amproc
                  where a.amproc in (select oid from wild)
                    and (m.amname in ('btree', 'hash') or p.prolang not in (select oid from trusted_language)))
      or exists (select from pg_catalog.pg_operator
                  where oprcode in (select oid from wild)
                    and oprname in ('=', '<>', '<', '<=', '>', '>=', '~', '~~', '~~*', '!~~', '!~~*')))
select 'function' as kind, null::text as schema, p.proname::text as name,
       bool_or(p.oid in (select oid from wild) or taken.checked and p.oid >= 16384) as hides,
       false as read_hides, bool_or(p.oid in (select oid from unreadable) or taken.checked) as unreadable,
       false as draws, bool_or(p.oid >= 16384 and n.nspname <> 'synapsedb') as own,
       bool_or(far.gives and not far.takes) or bool_or(far.gives) and not bool_or(p.oid < 16384) as elsewhere,
       bool_or(p.oid in (select oid from reader)) as anything, null::text[] as tables
  from pg_catalog.pg_proc p
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
  cross join lateral (
    select p.oid >= 16384
       and exists (select from checked_type c where c.oid = any (p.proargtypes) or c.oid = p.prorettype)
           as checked) taken
  -- What is called like one of the server's own, and takes values of such types, gives none where it gets none: those
  -- come from something else in the text, which says so itself.
  cross join lateral (
    select p.oid >= 16384 and (p.prorettype in (select oid from foreign_type)
       or exists (select from unnest(p.proallargtypes) t where t in (select oid from foreign_type))) as gives,
       exists (select from unnest(p.proargtypes) t where t in (select oid from foreign_type)) as takes) far
 group by p.proname
union all
select 'operator', null, o.oprname, bool_or(o.oprcode in (select oid from wild)),
       false, bool_or(o.oprcode in (select oid from volatile)), false, bool_or(o.oid >= 16384),
       bool_or(far.gives and not far.takes) or bool_or(far.gives) and not bool_or(o.oid < 16384),
       bool_or(o.oprcode in (select oid from reader)), null
  from pg_catalog.pg_operator o
  cross join lateral (
    select o.oid >= 16384 and o.oprresult in (select oid from foreign_type) as gives,
       o.oprleft in (select oid from foreign_type) or o.oprright in (select oid from foreign_type) as takes) far
 group by o.oprname
union all
select 'type', null, t.typname, true, true, true, false, true, true, true, null
  from pg_catalog.pg_type t
 where t.oid in (select oid from checked_type)
    or t.oid in (select casttarget from pg_catalog.pg_cast where castfunc in (select oid from wild))
 group by t.typname
union all
select 'foreign_type', null, t.typname, false, false, false, false, true, true, false, null
  from pg_catalog.pg_type t left join pg_catalog.pg_class c on c.oid = t.typrelid
 where t.oid in (select oid from foreign_type) and coalesce(c.relkind, 'c') = 'c'
   and t.typname !~ '^_' and t.typnamespace <> coalesce(to_regnamespace('synapsedb')::oid, 0)
 group by t.typname
union all
select 'relation', n.nspname, c.relname, c.oid in (select oid from hiding_relation),
       c.oid in (select oid from hiding_reader),
       c.oid in (select oid from unreadable_relation), c.oid in (select oid from drawing_relation),
       n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast', 'synapsedb'),
       c.oid in (select oid from foreign_relation), c.oid in (select oid from reading_relation), t.tables
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  left join reached t on t.relation = c.oid
 where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
   and n.nspname !~ '^pg_(toast|temp_|toast_temp_)'
union all
-- Code that may move a sequence.
select 'jumps', null, '', exists (
         select from pg_catalog.pg_proc p
          where p.oid >= 16384 and p.pronamespace <> coalesce(to_regnamespace('synapsedb')::oid, 0)
            and (p.prosrc ~* 'setval' or p.prosqlbody::text ~ ':funcid (1576|1765) '))
         or exists (select from trees where tree ~ ':funcid (1576|1765) '),
       false, false, false, false, false, false, null
union all
select 'implicit', null, '', hides, hides, hides, false, false, false,
       exists (select from pg_catalog.pg_cast where castfunc in (select oid from reader))
         or exists (select from pg_catalog.pg_constraint c
             cross join regexp_matches(c.conbin::text, ':(?:funcid|opfuncid) ([0-9]+)', 'g') m
                     where c.contype = 'c' and c.contypid <> 0 and m[1]::oid in (select oid from reader)),
       null
  from implicit

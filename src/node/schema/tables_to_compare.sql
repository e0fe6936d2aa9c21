-- The tables whose rows nodes must hold alike, as quoted qualified names.
select format('%I.%I', n.nspname, c.relname)
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind = 'r' and c.relpersistence = 'p' and c.oid >= 16384
   and n.nspname not in ('synapsedb', 'pg_catalog', 'information_schema', 'pg_toast')
 order by 1

-- What a database holds, by name: (kind, identity, definition), for comparing nodes. Run it with search_path
-- pg_catalog, so that every name inside a definition is qualified. Left out: schema synapsedb and its
-- publication and event triggers, what extensions own (their versions stand for it), values.
with
  theirs as materialized (
    select classid, objid from pg_depend where deptype = 'e' and refclassid = 'pg_extension'::regclass),
  schemas as materialized (
    select oid, nspname, quote_ident(nspname) as name, nspowner, nspacl from pg_namespace
     where nspname not in ('pg_catalog', 'information_schema', 'pg_toast', 'synapsedb')
       and nspname not like 'pg\_temp\_%' and nspname not like 'pg\_toast\_temp\_%'),
  relations as materialized (
    select c.*, format('%I.%I', s.nspname, c.relname) as name
      from pg_class c join schemas s on s.oid = c.relnamespace
     where not exists (select from theirs t where t.classid = 'pg_class'::regclass and t.objid = c.oid)),
  items (kind, identity, owner, acl, definition) as (
    select 'schema', s.name, s.nspowner, s.nspacl, ''
      from schemas s
    union all
    select 'relation', r.name, r.relowner, r.relacl, concat_ws(' ',
             r.relkind, r.relpersistence, 'identity', r.relreplident,
             case when r.relrowsecurity then 'rls' end, case when r.relforcerowsecurity then 'forced' end,
             r.reloptions::text,
             (select 'toast ' || t.reloptions::text from pg_class t where t.oid = r.reltoastrelid),
             (select m.amname from pg_am m where m.oid = r.relam),
             (select 'in ' || t.spcname from pg_tablespace t where t.oid = r.reltablespace),
             case when r.reloftype <> 0 then 'of ' || format_type(r.reloftype, null) end,
             case when r.relkind = 'p' then pg_get_partkeydef(r.oid) end,
             case when r.relispartition then pg_get_expr(r.relpartbound, r.oid) end,
             (select 'inherits ' || string_agg(i.inhparent::regclass::text, ', ' order by i.inhseqno)
                from pg_inherits i where i.inhrelid = r.oid),
             (select s.srvname || ' ' || f.ftoptions::text from pg_foreign_table f
                join pg_foreign_server s on s.oid = f.ftserver where f.ftrelid = r.oid),
             case when r.relkind in ('v', 'm') then pg_get_viewdef(r.oid) end,
             (select concat_ws(' ', format_type(q.seqtypid, null), q.seqstart, q.seqincrement, q.seqmin, q.seqmax, q.seqcache, q.seqcycle)
                from pg_sequence q where q.seqrelid = r.oid),
             (select 'owned by ' || d.refobjid::regclass::text || '.' || a.attname
                from pg_depend d join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
               where r.relkind = 'S' and d.classid = 'pg_class'::regclass and d.objid = r.oid
                 and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')))
      from relations r where r.relkind not in ('i', 'I', 't')
    union all
    select 'column', r.name || '.' || quote_ident(a.attname), null, a.attacl, concat_ws(' ',
             row_number() over (partition by a.attrelid order by a.attnum),
             format_type(a.atttypid, a.atttypmod), case when a.attnotnull then 'not null' end,
             'identity=' || nullif(a.attidentity, '')::text, 'generated=' || nullif(a.attgenerated, '')::text, a.attstorage,
             'compression=' || nullif(a.attcompression, '')::text, 'statistics=' || nullif(to_jsonb(a) ->> 'attstattarget', '-1'),
             a.attoptions::text, a.attfdwoptions::text, case when a.attislocal then 'local' end, a.attinhcount,
             (select 'collate ' || a.attcollation::regcollation::text from pg_type t
               where t.oid = a.atttypid and t.typcollation <> a.attcollation),
             (select 'default ' || pg_get_expr(d.adbin, d.adrelid) from pg_attrdef d
               where d.adrelid = a.attrelid and d.adnum = a.attnum))
      from relations r join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
     where r.relkind not in ('i', 'I', 't', 'S')
    union all
    select 'constraint', coalesce(r.name, format_type(nullif(c.contypid, 0), null)) || '.' || quote_ident(c.conname), null, null,
           concat_ws(' ', pg_get_constraintdef(c.oid), case when not c.convalidated then 'not valid' end,
                     case when not c.conislocal then 'inherited' end)
      from pg_constraint c join schemas s on s.oid = c.connamespace left join relations r on r.oid = c.conrelid
     where (r.oid is not null or c.contypid <> 0)
       and not exists (select from theirs t where t.classid = 'pg_type'::regclass and t.objid = c.contypid)
    union all
    select 'index', r.name, null, null, concat_ws(' ', pg_get_indexdef(r.oid), r.reloptions::text,
             case when not i.indisvalid then 'invalid' end, case when i.indisclustered then 'clustered' end,
             case when i.indisreplident then 'identity' end,
             (select 'in ' || t.spcname from pg_tablespace t where t.oid = r.reltablespace),
             (select 'attached to ' || h.inhparent::regclass::text from pg_inherits h where h.inhrelid = r.oid))
      from relations r join pg_index i on i.indexrelid = r.oid
    union all
    select 'trigger', r.name || '.' || quote_ident(g.tgname), null, null, pg_get_triggerdef(g.oid) || ' ' || g.tgenabled::text
      from relations r join pg_trigger g on g.tgrelid = r.oid and not g.tgisinternal
    union all
    select 'rule', r.name || '.' || quote_ident(u.rulename), null, null, pg_get_ruledef(u.oid) || ' ' || u.ev_enabled::text
      from relations r join pg_rewrite u on u.ev_class = r.oid and u.rulename <> '_RETURN'
    union all
    select 'policy', r.name || '.' || quote_ident(p.polname), null, null, concat_ws(' ', p.polcmd, p.polpermissive,
             (select string_agg(coalesce(o.rolname, 'public'), ',' order by o.rolname)
                from unnest(p.polroles) x left join pg_roles o on o.oid = x),
             'using ' || pg_get_expr(p.polqual, p.polrelid), 'check ' || pg_get_expr(p.polwithcheck, p.polrelid))
      from relations r join pg_policy p on p.polrelid = r.oid
    union all
    select 'statistics', format('%I.%I', s.nspname, x.stxname), x.stxowner, null,
           pg_get_statisticsobjdef(x.oid) || ' ' || coalesce(to_jsonb(x) ->> 'stxstattarget', '')
      from pg_statistic_ext x join schemas s on s.oid = x.stxnamespace
    union all
    select 'function', p.oid::regprocedure::text, p.proowner, p.proacl,
           case when p.prokind = 'a' then
             (select concat_ws(' ', g.aggkind, g.aggtransfn, g.aggfinalfn, g.aggcombinefn, g.aggserialfn, g.aggdeserialfn, g.aggmtransfn,
                        g.aggminvtransfn, g.aggmfinalfn, g.aggsortop::regoperator, format_type(g.aggtranstype, null), g.agginitval,
                        g.aggminitval, p.proparallel)
                from pg_aggregate g where g.aggfnoid = p.oid)
           else pg_get_functiondef(p.oid) end
      from pg_proc p join schemas s on s.oid = p.pronamespace
     where not exists (select from theirs t where t.classid = 'pg_proc'::regclass and t.objid = p.oid)
    union all
    select 'privileges', p.oid::regprocedure::text, p.proowner, p.proacl, ''
      from pg_proc p left join pg_init_privs i on i.classoid = 'pg_proc'::regclass and i.objoid = p.oid and i.objsubid = 0
     where p.oid < 16384 and p.proacl is distinct from i.initprivs
       and exists (select from unnest(p.proacl) x where x::text not like 'synapsedb\_applier=%' and x::text <> all (coalesce(i.initprivs, '{}')::text[]))
    union all
    select 'type', format_type(y.oid, null), y.typowner, y.typacl, concat_ws(' ', y.typtype, y.typcategory,
             (select string_agg(quote_literal(e.enumlabel), ', ' order by e.enumsortorder) from pg_enum e where e.enumtypid = y.oid),
             case when y.typtype = 'd' then concat_ws(' ', format_type(y.typbasetype, y.typtypmod), y.typdefault,
               case when y.typnotnull then 'not null' end, 'collate ' || nullif(y.typcollation, 0)::regcollation::text) end,
             case when y.typtype = 'b' then concat_ws(' ', y.typinput, y.typoutput, y.typreceive, y.typsend, y.typlen, y.typalign, y.typstorage) end,
             (select concat_ws(' ', format_type(g.rngsubtype, null), nullif(g.rngcollation, 0)::regcollation, g.rngcanonical, g.rngsubdiff,
                        format_type(g.rngmultitypid, null))
                from pg_range g where g.rngtypid = y.oid))
      from pg_type y join schemas s on s.oid = y.typnamespace
     where not (y.typtype = 'b' and y.typelem <> 0 and y.typsubscript = 'array_subscript_handler'::regproc)
       and (y.typrelid = 0 or exists (select from pg_class c where c.oid = y.typrelid and c.relkind = 'c'))
       and y.typtype <> 'm'
       and not exists (select from theirs t where t.classid = 'pg_type'::regclass and t.objid = y.oid)
    union all
    select 'operator', o.oid::regoperator::text, o.oprowner, null, concat_ws(' ', o.oprcode, o.oprcom::regoperator, o.oprnegate::regoperator,
             o.oprrest, o.oprjoin, o.oprcanmerge, o.oprcanhash)
      from pg_operator o join schemas s on s.oid = o.oprnamespace
     where not exists (select from theirs t where t.classid = 'pg_operator'::regclass and t.objid = o.oid)
    union all
    select 'operator family', format('%I.%I using %I', s.nspname, f.opfname, m.amname), f.opfowner, null,
           (select string_agg(concat_ws(' ', x.amopstrategy, x.amopopr::regoperator), ', ' order by x.amopstrategy, x.amopopr::regoperator::text)
              from pg_amop x where x.amopfamily = f.oid)
           || '; ' || coalesce((select string_agg(concat_ws(' ', x.amprocnum, x.amproc::regprocedure), ', ' order by x.amprocnum, x.amproc::regprocedure::text)
              from pg_amproc x where x.amprocfamily = f.oid), '')
      from pg_opfamily f join schemas s on s.oid = f.opfnamespace join pg_am m on m.oid = f.opfmethod
     where not exists (select from theirs t where t.classid = 'pg_opfamily'::regclass and t.objid = f.oid)
    union all
    select 'operator class', format('%I.%I using %I', s.nspname, c.opcname, m.amname), c.opcowner, null,
           concat_ws(' ', format_type(c.opcintype, null), format_type(nullif(c.opckeytype, 0), null), case when c.opcdefault then 'default' end,
                     (select f.opfname from pg_opfamily f where f.oid = c.opcfamily))
      from pg_opclass c join schemas s on s.oid = c.opcnamespace join pg_am m on m.oid = c.opcmethod
     where not exists (select from theirs t where t.classid = 'pg_opclass'::regclass and t.objid = c.oid)
    union all
    select 'cast', format_type(c.castsource, null) || ' as ' || format_type(c.casttarget, null), null, null,
           concat_ws(' ', nullif(c.castfunc, 0)::regprocedure, c.castcontext, c.castmethod)
      from pg_cast c where c.oid >= 16384
       and not exists (select from theirs t where t.classid = 'pg_cast'::regclass and t.objid = c.oid)
    union all
    select 'collation', format('%I.%I', s.nspname, c.collname), c.collowner, null,
           (to_jsonb(c) - '{oid,collname,collnamespace,collowner,collversion}'::text[])::text
      from pg_collation c join schemas s on s.oid = c.collnamespace
    union all
    select 'conversion', format('%I.%I', s.nspname, c.conname), c.conowner, null,
           concat_ws(' ', c.conforencoding, c.contoencoding, c.conproc, c.condefault)
      from pg_conversion c join schemas s on s.oid = c.connamespace
    union all
    select 'text search configuration', format('%I.%I', s.nspname, c.cfgname), c.cfgowner, null,
           (select p.prsname from pg_ts_parser p where p.oid = c.cfgparser) || ' '
           || coalesce((select string_agg(concat_ws(' ', m.maptokentype, m.mapseqno, m.mapdict::regdictionary), ', ' order by m.maptokentype, m.mapseqno)
                from pg_ts_config_map m where m.mapcfg = c.oid), '')
      from pg_ts_config c join schemas s on s.oid = c.cfgnamespace
    union all
    select 'text search dictionary', format('%I.%I', s.nspname, d.dictname), d.dictowner, null,
           concat_ws(' ', (select t.tmplname from pg_ts_template t where t.oid = d.dicttemplate), d.dictinitoption)
      from pg_ts_dict d join schemas s on s.oid = d.dictnamespace
     where not exists (select from theirs t where t.classid = 'pg_ts_dict'::regclass and t.objid = d.oid)
    union all
    select 'text search part', format('%I.%I', s.nspname, x.name), null, null, x.definition
      from (select prsname, prsnamespace, concat_ws(' ', prsstart, prstoken, prsend, prsheadline, prslextype) from pg_ts_parser
            union all
            select tmplname, tmplnamespace, concat_ws(' ', tmplinit, tmpllexize) from pg_ts_template) x (name, schema, definition)
      join schemas s on s.oid = x.schema
    union all
    select 'extension', quote_ident(e.extname), e.extowner, null, concat_ws(' ', e.extversion, n.nspname)
      from pg_extension e join pg_namespace n on n.oid = e.extnamespace
    union all
    select 'language', quote_ident(l.lanname), l.lanowner, l.lanacl, concat_ws(' ', l.lanpltrusted, l.lanplcallfoid::regproc)
      from pg_language l where l.lanname not in ('internal', 'c', 'sql')
    union all
    select 'foreign data wrapper', quote_ident(f.fdwname), f.fdwowner, f.fdwacl,
           concat_ws(' ', f.fdwhandler::regproc, f.fdwvalidator::regproc, f.fdwoptions::text)
      from pg_foreign_data_wrapper f
    union all
    select 'server', quote_ident(v.srvname), v.srvowner, v.srvacl,
           concat_ws(' ', f.fdwname, v.srvtype, v.srvversion, v.srvoptions::text)
      from pg_foreign_server v join pg_foreign_data_wrapper f on f.oid = v.srvfdw
    union all
    select 'user mapping', format('%I for %I', v.srvname, coalesce(o.rolname, 'public')), null, null, md5(u.umoptions::text)
      from pg_user_mapping u join pg_foreign_server v on v.oid = u.umserver left join pg_roles o on o.oid = u.umuser
    union all
    select 'event trigger', quote_ident(e.evtname), e.evtowner, null,
           concat_ws(' ', e.evtevent, e.evtfoid::regproc, e.evtenabled, e.evttags::text)
      from pg_event_trigger e where e.evtname not like '!synapsedb\_%'
    union all
    select 'publication', quote_ident(p.pubname), p.pubowner, null,
           (to_jsonb(p) - '{oid,pubname,pubowner}'::text[])::text
           || coalesce((select string_agg(concat_ws(' ', r.prrelid::regclass, pg_get_expr(r.prqual, r.prrelid), r.prattrs::text), ', ' order by r.prrelid::regclass::text)
                from pg_publication_rel r where r.prpubid = p.oid), '')
           || coalesce((select string_agg(n.pnnspid::regnamespace::text, ', ' order by n.pnnspid::regnamespace::text)
                from pg_publication_namespace n where n.pnpubid = p.oid), '')
      from pg_publication p where p.pubname <> 'synapsedb'
    union all
    select 'default privileges', concat_ws(' ', d.defaclrole::regrole, nullif(d.defaclnamespace, 0)::regnamespace, d.defaclobjtype), null, d.defaclacl, ''
      from pg_default_acl d
    union all
    select 'transform', format_type(t.trftype, null) || ' ' || l.lanname, null, null, concat_ws(' ', t.trffromsql::regproc, t.trftosql::regproc)
      from pg_transform t join pg_language l on l.oid = t.trflang
    union all
    select 'comment', i.type || ' ' || i.identity, null, null, d.description
      from pg_description d, pg_identify_object(d.classoid, d.objoid, d.objsubid) i
     where (d.objoid >= 16384 or d.classoid = 'pg_namespace'::regclass) and i.identity not like 'synapsedb.%'
       and not exists (select from theirs t where t.classid = d.classoid and t.objid = d.objoid)
    union all
    select 'label', l.provider || ' ' || i.type || ' ' || i.identity, null, null, l.label
      from pg_seclabel l, pg_identify_object(l.classoid, l.objoid, l.objsubid) i)
select i.kind, i.identity,
       concat_ws(' ', 'owner ' || pg_get_userbyid(i.owner),
         case when i.acl is not null then
           (select 'acl ' || coalesce(string_agg(x::text, ',' order by x::text), '') from unnest(i.acl) x
             where x::text not like 'synapsedb\_applier=%') end,
         i.definition) as definition
  from items i
 order by 1, 2, 3

-- What a server holds beside its databases' contents, by name: (kind, identity, definition). As for fingerprint.sql.
-- Passwords appear as a hash of their verifier.
select 'role' as kind, r.rolname::text as identity,
       (to_jsonb(r) - '{oid,rolname,rolpassword}'::text[])::text || ' ' || coalesce(md5(r.rolpassword), '') as definition
  from pg_authid r where r.rolname <> 'synapsedb_applier' and r.rolname not like 'pg\_%'
union all
select 'membership', format('%s in %s by %s', m.member::regrole, m.roleid::regrole, m.grantor::regrole),
       (to_jsonb(m) - '{oid,roleid,member,grantor}'::text[])::text
  from pg_auth_members m
 where m.member not in (select oid from pg_authid where rolname = 'synapsedb_applier' or rolname like 'pg\_%')
union all
select 'settings', format('%s in %s', coalesce(r.rolname, 'all roles'), coalesce(d.datname, 'all databases')),
       (select string_agg(x, ', ' order by x) from unnest(s.setconfig) x)
  from pg_db_role_setting s left join pg_authid r on r.oid = s.setrole left join pg_database d on d.oid = s.setdatabase
union all
select 'database', d.datname,
       concat_ws(' ', 'owner ' || pg_get_userbyid(d.datdba), 'in ' || t.spcname,
         (select string_agg(x::text, ',' order by x::text) from unnest(d.datacl) x),
         (to_jsonb(d) - '{oid,datname,datdba,dattablespace,datacl,datfrozenxid,datminmxid,datcollversion,dathasloginevt}'::text[])::text)
  from pg_database d join pg_tablespace t on t.oid = d.dattablespace
 where d.datname not in ('template0', 'template1')
union all
select 'tablespace', t.spcname,
       concat_ws(' ', 'owner ' || pg_get_userbyid(t.spcowner), t.spcoptions::text,
         (select string_agg(x::text, ',' order by x::text) from unnest(t.spcacl) x))
  from pg_tablespace t
union all
select 'parameter', p.parname,
       (select string_agg(x::text, ',' order by x::text) from unnest(p.paracl) x where x::text not like 'synapsedb\_applier=%')
  from pg_parameter_acl p
 where exists (select from unnest(p.paracl) x
                where x::text not like 'synapsedb\_applier=%' and x::text not like format('%I=%%', pg_get_userbyid(10)))
union all
select 'comment', i.type || ' ' || i.identity, s.description
  from pg_shdescription s, pg_identify_object(s.classoid, s.objoid, 0) i
 where s.objoid >= 16384
 order by 1, 2, 3

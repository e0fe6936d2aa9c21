-- The commands that give a server the roles and memberships that this one has: (kind, identity, command), the first
-- two as in cluster_fingerprint.sql. In an order in which they can be run, each any number of times.
select kind, identity, command from (
select 1 as place, 'role' as kind, r.rolname::text as identity,
       format('do $do$ begin if not exists (select from pg_catalog.pg_roles where rolname = %1$L) then create role %1$I; end if; end $do$; '
              'alter role %1$I %2$s connection limit %3$s password %4$s',
         r.rolname,
         concat_ws(' ', case when r.rolsuper then 'superuser' else 'nosuperuser' end,
                        case when r.rolinherit then 'inherit' else 'noinherit' end,
                        case when r.rolcreaterole then 'createrole' else 'nocreaterole' end,
                        case when r.rolcreatedb then 'createdb' else 'nocreatedb' end,
                        case when r.rolcanlogin then 'login' else 'nologin' end,
                        case when r.rolreplication then 'replication' else 'noreplication' end,
                        case when r.rolbypassrls then 'bypassrls' else 'nobypassrls' end,
                        'valid until ' || quote_literal(r.rolvaliduntil)),
         r.rolconnlimit, quote_nullable(r.rolpassword)) as command
  from pg_authid r where r.rolname <> 'synapsedb_applier' and r.rolname not like 'pg\_%'
union all
select 2, 'membership', format('%s in %s by %s', m.member::regrole, m.roleid::regrole, m.grantor::regrole),
       format('grant %s to %s %s granted by %s', m.roleid::regrole, m.member::regrole,
              case when to_jsonb(m) ? 'inherit_option'
                   then format('with admin %s, inherit %s, set %s', m.admin_option::text, to_jsonb(m) ->> 'inherit_option', to_jsonb(m) ->> 'set_option')
                   when m.admin_option then 'with admin option' else '' end,
              m.grantor::regrole)
  from pg_auth_members m
 where m.member not in (select oid from pg_authid where rolname = 'synapsedb_applier' or rolname like 'pg\_%')) x
 order by place, identity

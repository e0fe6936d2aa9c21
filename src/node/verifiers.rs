//! What the writer knows of a role that wants to log in: its verifier, and whether it may.
//!
//! Asked anew at each login and never cached: after a password change the old password opens
//! nothing, not even for a moment. The verifier leaves this file only as a type that prints nothing.

use std::hash::{BuildHasher, RandomState};

use crate::ids::NodeId;
use crate::wire::scram::verifier::Verifier;

use super::admin::{AdminError, Admins};
use super::identity::Identity;

/// Role, database and what was set for them by ALTER ROLE and ALTER DATABASE, in one snapshot.
const SQL: &str = "select a.rolpassword, a.rolcanlogin, coalesce(a.rolvaliduntil <= now(), false), \
    coalesce(d.datallowconn and pg_catalog.has_database_privilege(a.oid, d.oid, 'CONNECT'), false), \
    (select coalesce(pg_catalog.string_agg(s.setdatabase::text || ' ' || s.setrole::text || ' ' || s.setconfig::text, ' ' \
        order by s.setdatabase, s.setrole), '') from pg_catalog.pg_db_role_setting s \
        where s.setrole in (0, a.oid) and s.setdatabase in (0, coalesce(d.oid, 0))), \
    a.oid, a.rolsuper \
    from pg_catalog.pg_authid a left join pg_catalog.pg_database d on d.datname = $2 \
    where a.rolname = $1";

/// A role, as far as logging in goes.
#[derive(Debug)]
pub struct RoleFacts {
    /// The SCRAM verifier; None where the role has no password, an expired one or one of another kind.
    pub verifier: Option<Verifier>,
    /// Whether the role may log in, and into the database asked for. Where it may not, the node itself
    /// is asked to say so, in its own words.
    pub admitted: bool,
    /// The role's and the database's own settings; when they change, connections opened before have
    /// other defaults than new ones.
    pub defaults: String,
    /// Whom the name stands for.
    pub identity: Identity,
}

/// Asks the writer.
#[derive(Clone)]
pub struct Verifiers {
    admins: Admins,
    /// Makes numbers of verifiers that tell nothing of them.
    marks: RandomState,
}

impl Verifiers {
    /// Over these connections.
    pub fn new(admins: Admins) -> Self {
        Self {
            admins,
            marks: RandomState::new(),
        }
    }

    /// What the node knows of a role; None for a role that is not there. Dropping the future loses nothing.
    pub async fn facts(
        &self,
        node: NodeId,
        user: &str,
        database: &str,
    ) -> Result<Option<RoleFacts>, AdminError> {
        let client = self.admins.get(node).await?;
        let statement = client.prepare_cached(SQL).await?;
        let Some(row) = client.query_opt(&statement, &[&user, &database]).await? else {
            return Ok(None);
        };
        let password: Option<String> = row.try_get(0)?;
        let (may_log_in, expired): (bool, bool) = (row.try_get(1)?, row.try_get(2)?);
        let may_connect: bool = row.try_get(3)?;
        let identity = Identity {
            node,
            oid: row.try_get(5)?,
            superuser: row.try_get(6)?,
            mark: self.marks.hash_one(&password),
        };
        let verifier = password
            .filter(|_| !expired)
            .and_then(|text| Verifier::parse(&text).ok());
        if verifier.is_none() {
            tracing::debug!(user, expired, "role has no SCRAM verifier that is valid");
        }
        Ok(Some(RoleFacts {
            verifier,
            admitted: may_log_in && may_connect,
            defaults: row.try_get(4)?,
            identity,
        }))
    }
}

//! Whether nodes that meet for the first time are copies of each other.
//!
//! Guards promise 2 at its beginning: nodes that differ are refused, with what differs. Compares
//! databases, roles, what each database defines, and every table's rows as a sum of hashes. Nobody
//! else writes meanwhile: that is the operator's to see to, and the README says so.

use std::collections::BTreeSet;

use super::bring_up::{BringUpError, Reached};
use crate::config::Config;
use crate::ids::NodeId;
use crate::node::control::{self, Control, ControlError};

/// One line for each object a database defines, by name.
const DEFINITIONS: &str = "
select 'column ' || n.nspname || '.' || c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
       || case when a.attnotnull then ' not null' else '' end
       || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
  join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
 where n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast', 'synapsedb') and n.nspname not like 'pg\\_temp%'
union all
select 'relation ' || n.nspname || '.' || c.relname || ' ' || c.relkind::text || ' owner ' || pg_get_userbyid(c.relowner)
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast', 'synapsedb') and n.nspname not like 'pg\\_temp%'
union all
select 'constraint ' || conrelid::regclass::text || ' ' || conname || ' ' || pg_get_constraintdef(oid)
  from pg_constraint where conrelid <> 0 and connamespace not in
       (select oid from pg_namespace where nspname in ('pg_catalog', 'information_schema', 'synapsedb'))
union all
select 'function ' || p.oid::regprocedure::text || ' ' || md5(p.prosrc) from pg_proc p
  join pg_namespace n on n.oid = p.pronamespace
 where n.nspname not in ('pg_catalog', 'information_schema', 'synapsedb')
union all
select 'type ' || n.nspname || '.' || t.typname || ' ' || t.typtype::text from pg_type t
  join pg_namespace n on n.oid = t.typnamespace
 where n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast', 'synapsedb') and n.nspname not like 'pg\\_temp%'
union all
select 'extension ' || extname || ' ' || extversion from pg_extension
union all
select 'index ' || indexdef from pg_indexes where schemaname not in ('pg_catalog', 'information_schema', 'pg_toast', 'synapsedb')";

/// One line for each role and each database.
const GLOBALS: &str = "
select 'role ' || rolname || ' ' || rolsuper::text || rolcanlogin::text || rolcreatedb::text || rolcreaterole::text
  from pg_authid where rolname not like 'pg\\_%' and rolname <> 'synapsedb_applier'
union all
select 'database ' || datname || ' ' || pg_encoding_to_char(encoding) || ' ' || datcollate from pg_database
 where not datistemplate";

/// The tables whose rows are compared, quoted.
const TABLES: &str = "
select quote_ident(n.nspname) || '.' || quote_ident(c.relname) from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where c.relkind = 'r' and c.relpersistence <> 't'
   and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast', 'synapsedb') order by 1";

/// Compares every reached node with the first one.
pub async fn check(
    config: &Config,
    control: &Control,
    reached: &[Reached],
) -> Result<(), BringUpError> {
    let Some((first, others)) = reached.split_first() else {
        return Ok(());
    };
    let name = |node: NodeId| config.nodes[node.0].name.clone();
    let failed = |node: NodeId| {
        move |error: ControlError| BringUpError::Failed {
            node: name(node),
            doing: "comparing the nodes".to_owned(),
            error,
        }
    };
    let globals = lines(&first.client, GLOBALS)
        .await
        .map_err(failed(first.node))?;
    for other in others {
        let theirs = lines(&other.client, GLOBALS)
            .await
            .map_err(failed(other.node))?;
        same(&name(first.node), &globals, &name(other.node), &theirs, "")?;
    }
    let databases = control::databases(&first.client)
        .await
        .map_err(failed(first.node))?;
    for database in databases {
        let ours = contents(control, first.node, &database)
            .await
            .map_err(failed(first.node))?;
        for other in others {
            let theirs = contents(control, other.node, &database)
                .await
                .map_err(failed(other.node))?;
            let place = format!(" in database {database}");
            same(&name(first.node), &ours, &name(other.node), &theirs, &place)?;
        }
    }
    Ok(())
}

async fn lines(
    client: &tokio_postgres::Client,
    sql: &str,
) -> Result<BTreeSet<String>, ControlError> {
    let rows = control::rows(client, sql).await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| row.into_iter().next().flatten())
        .collect())
}

/// What a database defines, and each table's rows as one line.
async fn contents(
    control: &Control,
    node: NodeId,
    database: &str,
) -> Result<BTreeSet<String>, ControlError> {
    let client = control.connect(node, database).await?;
    let mut all = lines(&client, DEFINITIONS).await?;
    for table in lines(&client, TABLES).await? {
        let sum = format!(
            "select count(*)::text || ' rows, sum ' || coalesce(sum(hashtextextended(t::text, 0)), 0)::text from only {table} t"
        );
        for line in lines(&client, &sum).await? {
            all.insert(format!("table {table}: {line}"));
        }
    }
    Ok(all)
}

/// The first few lines that only one of the two has.
fn same(
    one: &str,
    ours: &BTreeSet<String>,
    other: &str,
    theirs: &BTreeSet<String>,
    place: &str,
) -> Result<(), BringUpError> {
    let only = |name: &str, set: BTreeSet<&String>| -> Vec<String> {
        set.into_iter()
            .take(3)
            .map(|line| format!("only {name} has {line}"))
            .collect()
    };
    let mut differences = only(one, ours.difference(theirs).collect());
    differences.extend(only(other, theirs.difference(ours).collect()));
    if differences.is_empty() {
        return Ok(());
    }
    Err(BringUpError::Different(format!(
        "{}{place}",
        differences.join("; ")
    )))
}

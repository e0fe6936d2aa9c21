//! What the applier must know of a follower's table that the stream does not say.
//!
//! Read through the applier's own connection, inside its own transaction, so that a table which
//! the same unit created is seen. All names are qualified and quoted by the server.

use std::collections::BTreeMap;

/// One column of a follower's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnFacts {
    /// The column's name, quoted where it must be.
    pub quoted: String,
    /// Its type, qualified with the schema, without modifiers.
    pub type_name: String,
    /// `GENERATED ALWAYS AS IDENTITY`: can't be SET, and INSERT must override.
    pub identity_always: bool,
    /// `GENERATED ALWAYS AS (...) STORED`: never written.
    pub generated: bool,
    /// The equality operator of the replica identity's index, where the column is part of it.
    pub equals: Option<String>,
}

/// One table of a follower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableFacts {
    /// Qualified and quoted.
    pub name: String,
    /// The owner, unquoted.
    pub owner: String,
    /// Whether constraints, index expressions or generated columns call functions written in a
    /// language other than C: such rows are written as the table's owner (rule 11).
    pub user_code: bool,
    /// Whether row security holds for the owner too.
    pub forced_security: bool,
    /// By the column's plain name.
    pub columns: BTreeMap<String, ColumnFacts>,
}

/// Gives one row per column: table, owner, user code, column, quoted column, type, identity,
/// generated, equality operator, forced row security. Parameters: schema, table (both text).
pub const TABLE_FACTS: &str = "
select pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname),
       pg_catalog.pg_get_userbyid(c.relowner)::pg_catalog.text,
       exists (
         select from pg_catalog.pg_depend d
           left join pg_catalog.pg_operator x on d.refclassid = 'pg_catalog.pg_operator'::pg_catalog.regclass and x.oid = d.refobjid
           join pg_catalog.pg_proc p on p.oid = case d.refclassid
                when 'pg_catalog.pg_proc'::pg_catalog.regclass then d.refobjid
                when 'pg_catalog.pg_operator'::pg_catalog.regclass then x.oprcode::pg_catalog.oid end
           join pg_catalog.pg_language l on l.oid = p.prolang and l.lanname not in ('internal', 'c')
          where (d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass and d.objid in (
                  select k.oid from pg_catalog.pg_constraint k where k.conrelid = c.oid
                  union all
                  select k.oid from pg_catalog.pg_constraint k
                   where k.contypid in (
                     with recursive t(oid) as (
                       select b.atttypid from pg_catalog.pg_attribute b where b.attrelid = c.oid and b.attnum > 0
                       union
                       select case when y.typtype = 'd' then y.typbasetype when y.typelem <> 0 then y.typelem
                                   else f.atttypid end
                         from t join pg_catalog.pg_type y on y.oid = t.oid
                         left join pg_catalog.pg_attribute f on y.typtype = 'c' and f.attrelid = y.typrelid and f.attnum > 0
                     ) select t.oid from t where t.oid is not null)))
             or (d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass and d.objid in (
                  select e.oid from pg_catalog.pg_attrdef e
                    join pg_catalog.pg_attribute g on g.attrelid = e.adrelid and g.attnum = e.adnum and g.attgenerated <> ''
                   where e.adrelid = c.oid))
             or (d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objid in (
                  select i.indexrelid from pg_catalog.pg_index i where i.indrelid = c.oid
                  union all
                  select h.relid::pg_catalog.oid from pg_catalog.pg_partition_ancestors(c.oid) h where c.relispartition))
       ),
       a.attname::pg_catalog.text,
       pg_catalog.quote_ident(a.attname),
       pg_catalog.quote_ident(tn.nspname) || '.' || pg_catalog.quote_ident(t.typname),
       a.attidentity = 'a',
       a.attgenerated <> '',
       (select pg_catalog.quote_ident(onsp.nspname) || '.' || o.oprname
          from pg_catalog.pg_index i
          join lateral pg_catalog.generate_series(0, i.indnkeyatts - 1) as k(n) on i.indkey[k.n] = a.attnum
          join pg_catalog.pg_opclass oc on oc.oid = i.indclass[k.n]
          join pg_catalog.pg_amop m on m.amopfamily = oc.opcfamily and m.amoplefttype = oc.opcintype
           and m.amoprighttype = oc.opcintype and m.amopstrategy = 3
          join pg_catalog.pg_operator o on o.oid = m.amopopr
          join pg_catalog.pg_namespace onsp on onsp.oid = o.oprnamespace
         where i.indexrelid = pg_catalog.pg_get_replica_identity_index(c.oid) limit 1),
       c.relrowsecurity and c.relforcerowsecurity
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  left join pg_catalog.pg_type t on t.oid = a.atttypid
  left join pg_catalog.pg_namespace tn on tn.oid = t.typnamespace
 where n.nspname = $1::pg_catalog.text and c.relname = $2::pg_catalog.text
 order by a.attnum";

impl TableFacts {
    /// Whether finding a row by its values may call code of a user's: casts to domains do.
    pub fn finds_by_user_code(&self) -> bool {
        let foreign = |column: &ColumnFacts| !column.type_name.starts_with("pg_catalog.");
        self.user_code && self.columns.values().any(foreign)
    }

    /// From the rows of [`TABLE_FACTS`]; none where there is no such table.
    pub fn from_rows(rows: &[Vec<Option<String>>]) -> Option<Self> {
        let text = |row: &[Option<String>], at: usize| row.get(at).cloned().flatten();
        let truth = |row: &[Option<String>], at: usize| text(row, at).as_deref() == Some("t");
        let first = rows.first()?;
        let mut columns = BTreeMap::new();
        // A table may have no columns: its one row here then names none.
        for row in rows.iter().filter(|row| text(row, 3).is_some()) {
            let column = ColumnFacts {
                quoted: text(row, 4)?,
                type_name: text(row, 5)?,
                identity_always: truth(row, 6),
                generated: truth(row, 7),
                equals: text(row, 8),
            };
            columns.insert(text(row, 3)?, column);
        }
        Some(Self {
            name: text(first, 0)?,
            owner: text(first, 1)?,
            user_code: truth(first, 2),
            forced_security: truth(first, 9),
            columns,
        })
    }
}

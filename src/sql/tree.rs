//! The walk over sqlparser's tree of a query.
//!
//! Every struct is taken apart by all its fields and every enum by the variants that `PostgreSQL` has;
//! a variant that is not named here, or a field of another dialect that is set, ends the walk. So a
//! newer sqlparser that learns more cannot widen what counts as read-only.

use sqlparser::ast::{
    Cte, Distinct, Fetch, GroupByExpr, Ident, Join, JoinConstraint, JoinOperator, LimitClause,
    NamedWindowExpr, ObjectName, ObjectNamePart, OrderBy, OrderByKind, Query, Select, SelectFlavor,
    SelectItem, SetExpr, SetQuantifier, TableAlias, TableFactor, TableWithJoins, Values,
    WildcardAdditionalOptions,
};

use super::names::RelationName;
use super::prove::Proven;
use super::statement::Reason;

/// Collects what a query reads.
#[derive(Default)]
pub struct Walk {
    /// So far.
    pub proven: Proven,
}

/// Goes on, or says why not.
pub type Step = Result<(), Reason>;

/// Ends the walk.
pub fn unknown(what: &str) -> Step {
    Err(Reason::NotUnderstood(what.to_owned()))
}

/// A condition that must hold.
pub fn only(holds: bool, what: &str) -> Step {
    if holds { Ok(()) } else { unknown(what) }
}

impl Walk {
    /// A query with its WITH, set operations, order and limits.
    pub fn query(&mut self, query: &Query) -> Step {
        let Query {
            with,
            body,
            order_by,
            limit_clause,
            fetch,
            locks,
            for_clause,
            settings,
            format_clause,
            pipe_operators,
        } = query;
        if !locks.is_empty() {
            return Err(Reason::Locks);
        }
        let foreign = for_clause.is_some() || settings.is_some() || format_clause.is_some();
        only(
            !foreign && pipe_operators.is_empty(),
            "a clause of another dialect",
        )?;
        for cte in with.iter().flat_map(|with| &with.cte_tables) {
            self.cte(cte)?;
        }
        self.body(body)?;
        if let Some(order_by) = order_by {
            self.order_by(order_by)?;
        }
        if let Some(limit) = limit_clause {
            self.limit(limit)?;
        }
        match fetch {
            Some(Fetch {
                with_ties: _,
                percent,
                quantity,
            }) => {
                only(!percent, "FETCH PERCENT")?;
                self.all(quantity)
            }
            None => Ok(()),
        }
    }

    fn cte(&mut self, cte: &Cte) -> Step {
        let Cte {
            alias,
            query,
            from,
            materialized: _,
            closing_paren_token: _,
        } = cte;
        only(from.is_none(), "WITH ... FROM")?;
        self.proven.with_queries.push(fold(&alias.name));
        no_foreign_alias(Some(alias))?;
        self.query(query)
    }

    fn body(&mut self, body: &SetExpr) -> Step {
        match body {
            SetExpr::Select(select) => self.select(select),
            SetExpr::Query(query) => self.query(query),
            SetExpr::SetOperation {
                left,
                op: _,
                set_quantifier,
                right,
            } => {
                let known = matches!(
                    set_quantifier,
                    SetQuantifier::All | SetQuantifier::Distinct | SetQuantifier::None
                );
                only(known, "BY NAME")?;
                self.body(left)?;
                self.body(right)
            }
            SetExpr::Values(Values {
                explicit_row: _,
                value_keyword: _,
                rows,
            }) => rows.iter().try_for_each(|row| self.all(&row.content)),
            SetExpr::Table(table) => {
                let name = table
                    .table_name
                    .as_ref()
                    .map(|name| name.to_ascii_lowercase());
                let schema = table
                    .schema_name
                    .as_ref()
                    .map(|name| name.to_ascii_lowercase());
                let Some(name) = name else {
                    return unknown("TABLE without a name");
                };
                self.proven.relations.push(RelationName { schema, name });
                Ok(())
            }
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
                Err(Reason::Writes)
            }
        }
    }

    fn select(&mut self, select: &Select) -> Step {
        let Select {
            select_token: _,
            optimizer_hints,
            distinct,
            select_modifiers,
            top,
            top_before_distinct: _,
            projection,
            exclude,
            into,
            from,
            lateral_views,
            prewhere,
            selection,
            connect_by,
            group_by,
            cluster_by,
            distribute_by,
            sort_by,
            having,
            named_window,
            qualify,
            window_before_qualify: _,
            value_table_mode,
            flavor,
        } = select;
        if into.is_some() {
            return Err(Reason::MakesTable);
        }
        let foreign = !optimizer_hints.is_empty()
            || select_modifiers.is_some()
            || top.is_some()
            || exclude.is_some()
            || !lateral_views.is_empty()
            || prewhere.is_some()
            || !connect_by.is_empty()
            || !cluster_by.is_empty()
            || !distribute_by.is_empty()
            || !sort_by.is_empty()
            || qualify.is_some()
            || value_table_mode.is_some()
            || *flavor != SelectFlavor::Standard;
        only(!foreign, "a clause of another dialect")?;
        if let Some(Distinct::On(keys)) = distinct {
            self.all(keys)?;
        }
        for item in projection {
            self.item(item)?;
        }
        for table in from {
            self.joins(table)?;
        }
        self.all(selection)?;
        match group_by {
            GroupByExpr::All(_) => return unknown("GROUP BY ALL"),
            GroupByExpr::Expressions(keys, modifiers) => {
                only(modifiers.is_empty(), "GROUP BY ... WITH")?;
                self.all(keys)?;
            }
        }
        self.all(having)?;
        for window in named_window {
            match &window.1 {
                NamedWindowExpr::NamedWindow(_) => {}
                NamedWindowExpr::WindowSpec(spec) => self.window(spec)?,
            }
        }
        Ok(())
    }

    fn item(&mut self, item: &SelectItem) -> Step {
        match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, alias: _ } => {
                self.expr(expr)
            }
            SelectItem::QualifiedWildcard(kind, options) => {
                use sqlparser::ast::SelectItemQualifiedWildcardKind as Kind;
                wildcard(options)?;
                match kind {
                    Kind::ObjectName(_) => Ok(()),
                    Kind::Expr(expr) => self.expr(expr),
                }
            }
            SelectItem::Wildcard(options) => wildcard(options),
            SelectItem::ExprWithAliases { .. } => unknown("several aliases"),
        }
    }

    fn order_by(&mut self, order_by: &OrderBy) -> Step {
        let OrderBy { kind, interpolate } = order_by;
        only(interpolate.is_none(), "INTERPOLATE")?;
        match kind {
            OrderByKind::All(_) => unknown("ORDER BY ALL"),
            OrderByKind::Expressions(keys) => self.sort(keys),
        }
    }

    fn limit(&mut self, limit: &LimitClause) -> Step {
        match limit {
            LimitClause::LimitOffset {
                limit,
                offset,
                limit_by,
            } => {
                only(limit_by.is_empty(), "LIMIT BY")?;
                self.all(limit)?;
                self.all(offset.as_ref().map(|offset| &offset.value))
            }
            LimitClause::OffsetCommaLimit { .. } => unknown("LIMIT with a comma"),
        }
    }

    fn joins(&mut self, table: &TableWithJoins) -> Step {
        let TableWithJoins { relation, joins } = table;
        self.table(relation)?;
        joins.iter().try_for_each(|join| {
            let Join {
                relation,
                global,
                join_operator,
            } = join;
            only(!global, "GLOBAL JOIN")?;
            self.table(relation)?;
            match join_operator {
                JoinOperator::Join(constraint)
                | JoinOperator::Inner(constraint)
                | JoinOperator::Left(constraint)
                | JoinOperator::LeftOuter(constraint)
                | JoinOperator::Right(constraint)
                | JoinOperator::RightOuter(constraint)
                | JoinOperator::FullOuter(constraint)
                | JoinOperator::CrossJoin(constraint) => match constraint {
                    JoinConstraint::On(expr) => self.expr(expr),
                    JoinConstraint::Using(_) | JoinConstraint::Natural | JoinConstraint::None => {
                        Ok(())
                    }
                },
                _ => unknown("a join of another dialect"),
            }
        })
    }

    fn table(&mut self, table: &TableFactor) -> Step {
        match table {
            TableFactor::Table {
                name,
                alias,
                args,
                with_hints,
                version,
                with_ordinality: _,
                partitions,
                json_path,
                sample,
                index_hints,
            } => {
                let foreign = !with_hints.is_empty()
                    || version.is_some()
                    || !partitions.is_empty()
                    || json_path.is_some()
                    || sample.is_some()
                    || !index_hints.is_empty();
                only(!foreign, "a table with options")?;
                no_foreign_alias(alias.as_ref())?;
                match args {
                    // A function: its name is among the calls.
                    Some(args) => {
                        only(args.settings.is_none(), "SETTINGS")?;
                        self.arguments(&args.args)
                    }
                    None => self.relation(name),
                }
            }
            TableFactor::Derived {
                lateral: _,
                subquery,
                alias,
                sample,
            } => {
                only(sample.is_none(), "TABLESAMPLE")?;
                no_foreign_alias(alias.as_ref())?;
                self.query(subquery)
            }
            TableFactor::Function {
                lateral: _,
                name: _,
                args,
                with_ordinality: _,
                alias,
            } => {
                no_foreign_alias(alias.as_ref())?;
                self.arguments(args)
            }
            TableFactor::UNNEST {
                alias,
                array_exprs,
                with_offset,
                with_offset_alias: _,
                with_ordinality: _,
            } => {
                only(!with_offset, "WITH OFFSET")?;
                no_foreign_alias(alias.as_ref())?;
                self.all(array_exprs)
            }
            TableFactor::NestedJoin {
                table_with_joins,
                alias,
            } => {
                no_foreign_alias(alias.as_ref())?;
                self.joins(table_with_joins)
            }
            _ => unknown("a table of another dialect"),
        }
    }

    fn relation(&mut self, name: &ObjectName) -> Step {
        let parts: Option<Vec<String>> = name
            .0
            .iter()
            .map(|part| match part {
                ObjectNamePart::Identifier(ident) => Some(fold(ident)),
                ObjectNamePart::Function(_) => None,
            })
            .collect();
        // A third part in front is the database's own name.
        let Some(mut parts) = parts.filter(|parts| parts.len() <= 3) else {
            return unknown("a relation's name");
        };
        let Some(name) = parts.pop() else {
            return unknown("a relation's name");
        };
        let schema = parts.pop();
        self.proven.relations.push(RelationName { schema, name });
        Ok(())
    }
}

/// What other dialects put behind an alias.
fn no_foreign_alias(alias: Option<&TableAlias>) -> Step {
    let Some(alias) = alias else { return Ok(()) };
    let TableAlias {
        explicit: _,
        name: _,
        columns: _,
        at,
    } = alias;
    only(at.is_none(), "an alias of another dialect")
}

/// `*`, without what other dialects put behind it.
pub fn wildcard(options: &WildcardAdditionalOptions) -> Step {
    let WildcardAdditionalOptions {
        wildcard_token: _,
        opt_ilike,
        opt_exclude,
        opt_except,
        opt_replace,
        opt_rename,
        opt_alias,
    } = options;
    let foreign = opt_ilike.is_some()
        || opt_exclude.is_some()
        || opt_except.is_some()
        || opt_replace.is_some()
        || opt_rename.is_some()
        || opt_alias.is_some();
    only(!foreign, "a wildcard with options")
}

/// The name an identifier stands for.
fn fold(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_ascii_lowercase(),
    }
}

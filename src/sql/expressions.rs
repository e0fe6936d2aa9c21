//! The walk's expressions; see `tree.rs` for its rule.

use sqlparser::ast::{
    AccessExpr, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentClause,
    FunctionArguments, OrderByExpr, Subscript, WindowFrameBound, WindowSpec, WindowType,
};

use super::tree::{Step, Walk, only, unknown, wildcard};

impl Walk {
    /// ORDER BY of a query, a call or a window.
    pub fn sort(&mut self, keys: &[OrderByExpr]) -> Step {
        keys.iter().try_for_each(|key| {
            let OrderByExpr {
                expr,
                options: _,
                with_fill,
            } = key;
            only(with_fill.is_none(), "WITH FILL")?;
            self.expr(expr)
        })
    }

    /// Each of them.
    pub fn all<'a>(&mut self, exprs: impl IntoIterator<Item = &'a Expr>) -> Step {
        exprs.into_iter().try_for_each(|expr| self.expr(expr))
    }

    /// One expression: the common kinds here.
    pub fn expr(&mut self, expr: &Expr) -> Step {
        match expr {
            // A typed literal's type is among the words.
            Expr::Identifier(_)
            | Expr::CompoundIdentifier(_)
            | Expr::Value(_)
            | Expr::TypedString(_) => Ok(()),
            Expr::IsFalse(e)
            | Expr::IsNotFalse(e)
            | Expr::IsTrue(e)
            | Expr::IsNotTrue(e)
            | Expr::IsNull(e)
            | Expr::IsNotNull(e)
            | Expr::IsUnknown(e)
            | Expr::IsNotUnknown(e)
            | Expr::Nested(e)
            | Expr::UnaryOp { op: _, expr: e }
            | Expr::Collate {
                expr: e,
                collation: _,
            }
            | Expr::Extract {
                field: _,
                syntax: _,
                expr: e,
            }
            | Expr::Ceil { expr: e, field: _ }
            | Expr::Floor { expr: e, field: _ }
            | Expr::IsNormalized {
                expr: e,
                form: _,
                negated: _,
            } => self.expr(e),
            Expr::Cast {
                kind: _,
                expr,
                data_type: _,
                format,
            } => {
                only(format.is_none(), "CAST ... FORMAT")?;
                self.expr(expr)
            }
            Expr::IsDistinctFrom(a, b)
            | Expr::IsNotDistinctFrom(a, b)
            | Expr::BinaryOp {
                left: a,
                op: _,
                right: b,
            }
            | Expr::AnyOp {
                left: a,
                compare_op: _,
                right: b,
                is_some: _,
            }
            | Expr::AllOp {
                left: a,
                compare_op: _,
                right: b,
            }
            | Expr::AtTimeZone {
                timestamp: a,
                time_zone: b,
            }
            | Expr::Position { expr: a, r#in: b } => {
                self.expr(a)?;
                self.expr(b)
            }
            _ => self.rarer(expr),
        }
    }

    fn rarer(&mut self, expr: &Expr) -> Step {
        match expr {
            Expr::InList {
                expr,
                list,
                negated: _,
            } => {
                self.expr(expr)?;
                self.all(list)
            }
            Expr::InSubquery {
                expr,
                subquery,
                negated: _,
            } => {
                self.expr(expr)?;
                self.query(subquery)
            }
            Expr::Between {
                expr,
                negated: _,
                low,
                high,
            } => self.all([&**expr, &**low, &**high]),
            Expr::Like {
                negated: _,
                any: _,
                expr,
                pattern,
                escape_char,
            }
            | Expr::ILike {
                negated: _,
                any: _,
                expr,
                pattern,
                escape_char,
            }
            | Expr::SimilarTo {
                negated: _,
                expr,
                pattern,
                escape_char,
            } => {
                self.all([&**expr, &**pattern])?;
                self.all(escape_char.as_deref())
            }
            Expr::Substring {
                expr,
                substring_from,
                substring_for,
                special: _,
                shorthand: _,
            } => {
                self.expr(expr)?;
                self.all(substring_from.as_deref())?;
                self.all(substring_for.as_deref())
            }
            Expr::Trim {
                trim_where: _,
                trim_what,
                expr,
                trim_characters,
            } => {
                self.all(trim_what.as_deref())?;
                self.expr(expr)?;
                self.all(trim_characters.iter().flatten())
            }
            Expr::Overlay {
                expr,
                overlay_what,
                overlay_from,
                overlay_for,
            } => {
                self.all([&**expr, &**overlay_what, &**overlay_from])?;
                self.all(overlay_for.as_deref())
            }
            Expr::Case {
                case_token: _,
                end_token: _,
                operand,
                conditions,
                else_result,
            } => {
                self.all(operand.as_deref())?;
                for when in conditions {
                    self.all([&when.condition, &when.result])?;
                }
                self.all(else_result.as_deref())
            }
            _ => self.compound(expr),
        }
    }

    fn compound(&mut self, expr: &Expr) -> Step {
        match expr {
            Expr::Exists {
                subquery,
                negated: _,
            }
            | Expr::Subquery(subquery) => self.query(subquery),
            Expr::Function(function) => self.function(function),
            Expr::Tuple(list) => self.all(list),
            Expr::Array(array) => self.all(&array.elem),
            Expr::Interval(interval) => self.expr(&interval.value),
            Expr::GroupingSets(sets) | Expr::Cube(sets) | Expr::Rollup(sets) => {
                self.all(sets.iter().flatten())
            }
            Expr::CompoundFieldAccess { root, access_chain } => {
                self.expr(root)?;
                access_chain
                    .iter()
                    .try_for_each(|access| self.access(access))
            }
            _ => unknown("an expression of another dialect"),
        }
    }

    fn access(&mut self, access: &AccessExpr) -> Step {
        match access {
            AccessExpr::Dot(expr) => self.expr(expr),
            AccessExpr::Subscript(Subscript::Index { index }) => self.expr(index),
            AccessExpr::Subscript(Subscript::Slice {
                lower_bound,
                upper_bound,
                stride,
            }) => {
                only(stride.is_none(), "a slice with a stride")?;
                self.all(lower_bound)?;
                self.all(upper_bound)
            }
        }
    }

    /// Its name is among the calls; here only what it is called with.
    fn function(&mut self, function: &Function) -> Step {
        let Function {
            name: _,
            uses_odbc_syntax,
            parameters,
            args,
            within_group,
            filter,
            null_treatment,
            over,
        } = function;
        let plain = !uses_odbc_syntax
            && matches!(parameters, FunctionArguments::None)
            && null_treatment.is_none();
        only(plain, "a call of another dialect")?;
        match args {
            FunctionArguments::None => {}
            FunctionArguments::Subquery(query) => self.query(query)?,
            FunctionArguments::List(list) => {
                self.arguments(&list.args)?;
                for clause in &list.clauses {
                    match clause {
                        FunctionArgumentClause::OrderBy(keys) => self.sort(keys)?,
                        _ => return unknown("a clause in a call"),
                    }
                }
            }
        }
        self.sort(within_group)?;
        self.all(filter.as_deref())?;
        match over {
            Some(WindowType::WindowSpec(spec)) => self.window(spec),
            Some(WindowType::NamedWindow(_)) | None => Ok(()),
        }
    }

    /// What a call is given.
    pub fn arguments(&mut self, args: &[FunctionArg]) -> Step {
        args.iter().try_for_each(|arg| {
            let arg = match arg {
                FunctionArg::Named {
                    name: _,
                    arg,
                    operator: _,
                }
                | FunctionArg::Unnamed(arg) => arg,
                FunctionArg::ExprNamed { .. } => return unknown("a named argument"),
            };
            match arg {
                FunctionArgExpr::Expr(expr) => self.expr(expr),
                FunctionArgExpr::QualifiedWildcard(_) | FunctionArgExpr::Wildcard => Ok(()),
                FunctionArgExpr::WildcardWithOptions(options) => wildcard(options),
            }
        })
    }

    /// OVER (...), WINDOW w AS (...).
    pub fn window(&mut self, spec: &WindowSpec) -> Step {
        let WindowSpec {
            window_name: _,
            partition_by,
            order_by,
            window_frame,
        } = spec;
        self.all(partition_by)?;
        self.sort(order_by)?;
        let Some(frame) = window_frame else {
            return Ok(());
        };
        let bounds = [Some(&frame.start_bound), frame.end_bound.as_ref()];
        bounds
            .into_iter()
            .flatten()
            .try_for_each(|bound| match bound {
                WindowFrameBound::CurrentRow => Ok(()),
                WindowFrameBound::Preceding(expr) | WindowFrameBound::Following(expr) => {
                    self.all(expr.as_deref())
                }
            })
    }
}

//! What a database's names stand for, as far as it decides where a statement may run.
//!
//! Plain data, filled by a loader elsewhere; a name that is not in it is unknown and never harmless.

use std::collections::BTreeMap;

use super::builtins;
use super::names::Names;
use super::statement::{Effects, Reason};

/// A snapshot of one database's functions, operators, types and relations.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// The worst of all functions of a name: true where one is volatile and not the server's own.
    functions: BTreeMap<String, bool>,
}

impl Catalog {
    /// Knows nothing of the database: only the server's own functions are taken for what they are.
    pub fn unknown() -> Self {
        Self::default()
    }

    /// Whether calling `name` leaves the session as it was, but for what its name is known to do.
    pub fn call_is_tame(&self, name: &str) -> bool {
        match self.functions.get(name) {
            Some(wild) => !wild,
            None => {
                builtins::is_harmless(name)
                    || builtins::named_effects(name).is_some_and(|e| e != Effects::default())
            }
        }
    }

    /// Whether behind a relation, type or function of this name code may run that is not known.
    pub fn word_may_hide_code(&self, _name: &str) -> bool {
        false
    }

    /// Whether an operator of this name may run code that is not known.
    pub fn operator_may_hide_code(&self, _name: &str) -> bool {
        false
    }

    /// Whether casts or comparisons that no text names may run code that is not known.
    pub fn implicit_code(&self) -> bool {
        false
    }

    /// Whether the user has a relation of this name.
    pub fn has_user_relation(&self, _name: &str) -> bool {
        false
    }

    /// Whether the user has a function of this name.
    pub fn has_user_function(&self, _name: &str) -> bool {
        false
    }

    /// Whether a query with these names is read-only.
    pub fn read_only(&self, _names: &Names) -> Result<(), Reason> {
        Err(Reason::NotUnderstood("no catalog".to_owned()))
    }
}

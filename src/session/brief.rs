//! What the relay does about a text: the facts of its statements boiled down to a few yes and no.
//!
//! Kept per text, so that a statement that was seen before costs one look-up. What is not known of a text
//! (too long, not UTF-8, cannot be cut) fails closed: it may write, change settings and pin.

use crate::session::pipeline::Risk;

/// What sending a text means for its session and connection.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)]
pub struct Brief {
    /// Look at the connection before another session may have it.
    pub probe: bool,
    /// Settings may differ from here on, so what is prepared now must not be shared.
    pub settings: bool,
    /// Code ran whose settings no probe may see.
    pub taints: bool,
    /// Calls `nextval`, so the connection is kept while nobody needs it.
    pub nextval: bool,
    /// Calls `currval` or `lastval`, so the connection is kept.
    pub currval: bool,
    /// Names `client_min_messages`: the server may say nothing of a broken wait.
    pub mutes: bool,
    /// What its loss means.
    pub risk: Risk,
    /// Custom settings it names.
    pub placeholders: Vec<String>,
    /// May drop all prepared statements: DISCARD ALL, DEALLOCATE ALL.
    pub deallocates_all: bool,
    /// Is the one statement `DEALLOCATE name`.
    pub deallocates: Option<String>,
}

impl Brief {
    /// Of a text of which nothing is known.
    pub fn unknown() -> Self {
        Self {
            probe: true,
            settings: true,
            taints: true,
            mutes: true,
            risk: Risk::Commit,
            ..Self::default()
        }
    }
}

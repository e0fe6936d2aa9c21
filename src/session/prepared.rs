//! Prepared statements of sessions over pooled connections: who calls what by which name.
//!
//! A named statement of a client is one of the proxy's, `synapsedb_<n>`, shared by all who prepare the
//! same text with the same parameter types under the same settings, and prepared on whichever connection
//! needs it. It guards the promise that a name means what its own session gave it, whichever connection
//! is used, and that nothing grows without bound.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};

use crate::node::carried::{Carried, Noted};
use crate::session::brief::Brief;

/// Statements one connection holds before the least recently used is closed.
pub const PER_CONNECTION_MAX: usize = 256;
/// Statements one session may name.
pub const PER_SESSION_MAX: usize = 10_000;
/// Bytes of texts in the shared cache.
const SHARED_BYTES_MAX: u64 = 32 << 20;

/// A statement as some client prepared it.
#[derive(Debug)]
pub struct Statement {
    /// Its number, never used twice.
    pub id: u64,
    /// What follows the name in its Parse: text, zero, parameter types.
    pub tail: Bytes,
    /// What running it means.
    pub brief: Arc<Brief>,
    /// A node has understood it.
    proven: AtomicBool,
    /// Its result has another shape now.
    outdated: AtomicBool,
}

impl Statement {
    /// A statement with this number.
    pub fn new(id: u64, tail: Bytes, brief: Arc<Brief>) -> Self {
        Self {
            id,
            tail,
            brief,
            proven: AtomicBool::new(false),
            outdated: AtomicBool::new(false),
        }
    }

    /// A node has understood it.
    pub fn prove(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }

    /// Whether a node has ever understood it: then Parse needs no connection, and what has changed since
    /// shows at Bind or Describe.
    pub fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// A node refuses it for good, since its result has another shape than when it was prepared. It stays
    /// so for those who have it by a name; who prepares its text from now on gets another.
    pub fn outdate(&self) {
        self.outdated.store(true, Ordering::Relaxed);
    }

    /// Whether it may be given to one who prepares its text now, with this brief: what a name stood for
    /// when it was prepared may have changed since.
    fn is_current(&self, brief: &Brief) -> bool {
        self.brief.names == brief.names && !self.outdated.load(Ordering::Relaxed)
    }

    /// Its name on the nodes.
    pub fn server_name(&self) -> String {
        format!("synapsedb_{}", self.id)
    }

    /// Appends its Parse under `name`.
    pub fn put_parse(&self, name: &str, out: &mut BytesMut) {
        put_parse(name, &self.tail, out);
    }
}

/// Appends a Parse under `name` with what follows a name in the client's.
pub fn put_parse(name: &str, tail: &[u8], out: &mut BytesMut) {
    let length = 4 + name.len() + 1 + tail.len();
    out.reserve(length + 1);
    out.put_u8(b'P');
    // The tail came in a frame whose length word held it beside a name of the client's.
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    out.put_slice(name.as_bytes());
    out.put_u8(0);
    out.put_slice(tail);
}

#[derive(Clone)]
struct TextWeight;

impl quick_cache::Weighter<(u64, Bytes), Arc<Statement>> for TextWeight {
    fn weight(&self, (_, tail): &(u64, Bytes), _: &Arc<Statement>) -> u64 {
        tail.len() as u64 + 200
    }
}

/// The statements that sessions share. Bounded; what falls out is prepared anew under a new number.
pub struct Shelf {
    cache: quick_cache::sync::Cache<(u64, Bytes), Arc<Statement>, TextWeight>,
    next: AtomicU64,
}

impl Default for Shelf {
    fn default() -> Self {
        Self {
            cache: quick_cache::sync::Cache::with_weighter(4096, SHARED_BYTES_MAX, TextWeight),
            next: AtomicU64::new(1),
        }
    }
}

impl Shelf {
    /// The statement of this tail under settings with this digest; `None` for the digest keeps it private.
    pub fn get(&self, digest: Option<u64>, tail: &[u8], brief: &Arc<Brief>) -> Arc<Statement> {
        let tail = Bytes::copy_from_slice(tail);
        let Some(digest) = digest else {
            return Arc::new(self.make(tail, Arc::clone(brief)));
        };
        let key = (digest, tail);
        let known = self.cache.get(&key);
        if let Some(known) = known.filter(|known| known.is_current(brief)) {
            return known;
        }
        let made = Arc::new(self.make(key.1.clone(), Arc::clone(brief)));
        self.cache.insert(key, Arc::clone(&made));
        made
    }

    fn make(&self, tail: Bytes, brief: Arc<Brief>) -> Statement {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        Statement::new(id, tail, brief)
    }
}

/// What a name, or no name, stands for in a session since its Parse.
#[derive(Debug)]
pub struct Meaning {
    /// The statement.
    pub statement: Arc<Statement>,
    /// What the session was told of it last.
    pub told: Arc<Noted>,
}

impl Meaning {
    fn new(statement: Arc<Statement>) -> Arc<Self> {
        let told = Arc::default();
        Arc::new(Self { statement, told })
    }
}

/// The unnamed statement of a session, counted so that a connection's can be told from an older one.
#[derive(Debug, Clone)]
pub struct Unnamed {
    /// Which of the session's unnamed statements.
    pub count: u64,
    /// What it is.
    pub meaning: Arc<Meaning>,
}

/// A change of the unnamed statement: what there was before, and what it made.
#[derive(Debug, Clone)]
pub struct UnnamedChange {
    /// The session's before.
    pub before: Option<Unnamed>,
    /// Whose the connection's was.
    pub theirs: Option<(u64, u64)>,
    /// Whose it is by this.
    pub mine: Option<(u64, u64)>,
}

/// What to take back when the node did not run a message after all.
#[derive(Debug, Default)]
pub struct Undo {
    /// The message itself failed, rather than being skipped after another's failure.
    pub failed: bool,
    /// The session's name, and what it meant.
    pub named: Option<(Bytes, Option<Arc<Meaning>>)>,
    /// The connection's statement, and whether it was there.
    pub on_connection: Option<(u64, bool)>,
    /// The unnamed statement.
    pub unnamed: Option<UnnamedChange>,
}

impl Undo {
    /// Of a change of nothing but the unnamed statement.
    pub fn unnamed(change: UnnamedChange) -> Self {
        Self {
            unnamed: Some(change),
            ..Self::default()
        }
    }
}

/// The statements of one session.
#[derive(Debug, Default)]
pub struct Prepared {
    named: HashMap<Bytes, Arc<Meaning>>,
    /// The unnamed one.
    pub unnamed: Option<Unnamed>,
    count: u64,
}

impl Prepared {
    /// What a name means.
    pub fn get(&self, name: &[u8]) -> Option<&Arc<Meaning>> {
        self.named.get(name)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.named.len()
    }

    /// Whether there are none with a name.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// Gives a name a meaning, or takes it away; the undo brings back what it meant.
    pub fn name(&mut self, name: &[u8], statement: Option<Arc<Statement>>) -> Undo {
        let name = Bytes::copy_from_slice(name);
        let before = match statement {
            Some(statement) => self.named.insert(name.clone(), Meaning::new(statement)),
            None => self.named.remove(&name),
        };
        Undo {
            named: Some((name, before)),
            ..Undo::default()
        }
    }

    /// Sets the unnamed statement, which the message being sent also makes the connection's.
    pub fn set_unnamed(
        &mut self,
        statement: Arc<Statement>,
        session: u64,
        carried: &mut Carried,
    ) -> Undo {
        let before = self.keep_unnamed(statement);
        let mine = Some((session, self.count));
        let theirs = std::mem::replace(&mut carried.unnamed, mine);
        carried.unnamed_shape = Arc::default();
        Undo::unnamed(UnnamedChange {
            before,
            theirs,
            mine,
        })
    }

    /// There is no unnamed statement any more, here and on the connection.
    pub fn end_unnamed(&mut self, carried: Option<&mut Carried>) -> Undo {
        Undo::unnamed(UnnamedChange {
            before: self.unnamed.take(),
            theirs: carried.and_then(|carried| carried.unnamed.take()),
            mine: None,
        })
    }

    /// Sets the unnamed statement on no connection yet; gives the one before.
    pub fn keep_unnamed(&mut self, statement: Arc<Statement>) -> Option<Unnamed> {
        self.count += 1;
        let unnamed = Unnamed {
            count: self.count,
            meaning: Meaning::new(statement),
        };
        self.unnamed.replace(unnamed)
    }

    /// Forgets all, as DISCARD ALL and DEALLOCATE ALL do.
    pub fn clear(&mut self) {
        self.named.clear();
    }

    /// Takes a change back. `later` is the next change of the unnamed statement that may have to be taken back.
    pub fn undo(
        &mut self,
        undo: Undo,
        mut carried: Option<&mut Carried>,
        later: Option<&mut UnnamedChange>,
    ) {
        if let Some((name, before)) = undo.named {
            match before {
                Some(meaning) => self.named.insert(name, meaning),
                None => self.named.remove(&name),
            };
        }
        if let Some(mut change) = undo.unnamed {
            if undo.failed {
                // What fails has ended the one before.
                (change.before, change.theirs) = (None, None);
            }
            self.undo_unnamed(change, carried.as_deref_mut(), later);
        }
        let Some(carried) = carried else { return };
        match undo.on_connection {
            Some((id, true)) => carried.statements.insert(id),
            Some((id, false)) => carried.statements.remove(id),
            None => {}
        }
    }

    /// Only where nothing else has come in its place; else what came has another before it.
    fn undo_unnamed(
        &mut self,
        change: UnnamedChange,
        carried: Option<&mut Carried>,
        later: Option<&mut UnnamedChange>,
    ) {
        let made = change.mine.map_or(0, |(_, count)| count);
        let count = |unnamed: &Option<Unnamed>| unnamed.as_ref().map_or(0, |one| one.count);
        if let Some(later) = later {
            if count(&later.before) == made {
                later.before.clone_from(&change.before);
            }
            if later.theirs == change.mine {
                later.theirs = change.theirs;
            }
        }
        if count(&self.unnamed) == made {
            self.unnamed = change.before;
        }
        if let Some(carried) = carried.filter(|carried| carried.unnamed == change.mine) {
            carried.unnamed = change.theirs;
            carried.unnamed_shape = Arc::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brief() -> Arc<Brief> {
        Arc::new(Brief::default())
    }

    #[test]
    fn what_has_another_shape_now_is_not_given_out_again() {
        let shelf = Shelf::default();
        let one = shelf.get(Some(1), b"table t\0\0\0", &brief());
        one.outdate();
        let two = shelf.get(Some(1), b"table t\0\0\0", &brief());
        assert_ne!(one.id, two.id);
        assert_eq!(two.id, shelf.get(Some(1), b"table t\0\0\0", &brief()).id);
        let later = Arc::new(Brief {
            names: brief().names + 1,
            ..Brief::default()
        });
        assert_ne!(two.id, shelf.get(Some(1), b"table t\0\0\0", &later).id);
    }

    #[test]
    fn same_text_same_types_same_settings_share() {
        let shelf = Shelf::default();
        let one = shelf.get(Some(1), b"select 1\0\0\0", &brief());
        assert_eq!(one.id, shelf.get(Some(1), b"select 1\0\0\0", &brief()).id);
        assert_ne!(one.id, shelf.get(Some(2), b"select 1\0\0\0", &brief()).id);
        assert_ne!(one.id, shelf.get(None, b"select 1\0\0\0", &brief()).id);
        let typed = shelf.get(Some(1), b"select 1\0\0\x01\0\0\0\x17", &brief());
        assert_ne!(one.id, typed.id);
        let mut out = BytesMut::new();
        one.put_parse("s", &mut out);
        assert_eq!(&out[..], b"P\0\0\0\x11s\0select 1\0\0\0");
    }

    #[test]
    fn a_skipped_message_changes_nothing() {
        let shelf = Shelf::default();
        let mut carried = Carried::default();
        let mut mine = Prepared::default();
        let (a, b) = (
            shelf.get(None, b"a", &brief()),
            shelf.get(None, b"b", &brief()),
        );
        mine.name(b"s", Some(Arc::clone(&a)));
        let close = mine.name(b"s", None);
        let again = mine.name(b"s", Some(Arc::clone(&b)));
        mine.undo(again, Some(&mut carried), None);
        assert!(mine.get(b"s").is_none());
        mine.undo(close, Some(&mut carried), None);
        assert_eq!(mine.get(b"s").map(|s| s.statement.id), Some(a.id));

        mine.set_unnamed(Arc::clone(&a), 7, &mut carried);
        let skipped = mine.set_unnamed(Arc::clone(&a), 7, &mut carried);
        mine.undo(skipped, Some(&mut carried), None);
        assert_eq!(carried.unnamed, Some((7, 1)));
        assert_eq!(mine.unnamed.as_ref().map(|u| u.count), Some(1));
        let mut failed = mine.set_unnamed(Arc::clone(&a), 7, &mut carried);
        failed.failed = true;
        mine.undo(failed, Some(&mut carried), None);
        assert!(mine.unnamed.is_none() && carried.unnamed.is_none());

        // One of a later batch stays, and goes back to what there was before both.
        let first = mine.set_unnamed(Arc::clone(&b), 7, &mut carried);
        let mut second = mine.set_unnamed(b, 7, &mut carried);
        mine.undo(first, Some(&mut carried), second.unnamed.as_mut());
        assert_eq!(mine.unnamed.as_ref().map(|u| u.count), Some(5));
        assert_eq!(carried.unnamed, Some((7, 5)));
        mine.undo(second, Some(&mut carried), None);
        assert!(mine.unnamed.is_none() && carried.unnamed.is_none());
    }
}

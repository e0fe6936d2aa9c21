//! Bind and Describe: what a client was told of a statement, held against the connection's copy of it.
//!
//! A client may keep a statement's description and never ask again, so one server refuses to run the statement
//! (0A000) once DDL has given its result another shape. Here a copy may have been prepared after that DDL, on
//! another connection or anew on the same one, and the server finds nothing wrong with it. It guards the
//! promise that a client never gets rows, and no parameters are taken, of another shape than it was told last
//! of that statement, by a Describe of it or of the portal it bound last: it is told 0A000 instead.
//!
//! Nothing is concluded from when DDL was seen: a copy whose description is not known is asked for it, once,
//! before a Bind by a session that was told one. Who always describes the portal that he binds is not in need
//! of that; who never describes anything never waits.
//!
//! Stricter than one server in one thing: a statement that returns nothing, but takes a parameter whose type was
//! told and has changed, is refused too. One server would go on with the old type; a new copy has the new one.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::node::carried::Noted;
use crate::session::following::Want;
use crate::session::naming::REFUSED_NAME;
use crate::session::pipeline::{Entry, Expect, Listener, Own};
use crate::session::prepared::{Meaning, Statement};
use crate::session::reading::Again;
use crate::session::relay::{End, Session};
use crate::session::requests::{NAMES_BYTES_MAX, Step, UNPARSABLE, is_unseen, violation};
use crate::wire::frame::{self, Header};
use crate::wire::message::frontend::{self, Target};
use crate::wire::message::names;
use crate::wire::message::report::{Report, Severity, field};

/// The portal that was bound last, if its statement came by Parse.
#[derive(Debug)]
pub struct Bound {
    portal: Bytes,
    meaning: Arc<Meaning>,
    /// What is known of the copy that it was bound from.
    copy: Arc<Noted>,
}

/// What becomes of a Bind.
enum Fit {
    /// It may go on.
    Good,
    /// The client was told something else.
    Other,
    /// The copy must be asked first.
    Unknown,
}

impl Session {
    pub(super) async fn bind(&mut self, header: Header) -> Result<Step, End> {
        let Some(name) = names::statement_range(&self.input).map_err(violation)? else {
            return self.names_missing();
        };
        let named = !name.is_empty();
        let meaning = self.meaning(&name);
        let brief = self.brief_of(meaning.as_ref().map(|meaning| &meaning.statement));
        if let Some(step) = self.connected(header, Want::Text(&brief)).await? {
            return Ok(step);
        }
        self.in_batch = true;
        let copy = self.copy(meaning.as_deref(), named);
        if let (Some(meaning), Some(copy)) = (&meaning, &copy) {
            match self.fit(meaning, copy, header) {
                Fit::Good => {}
                // The writer knows better: OIDs may differ, and nothing else.
                Fit::Other if self.reading.is_some() => {
                    brief.bar();
                    Box::pin(self.run_again(Again::Foreign)).await?;
                    return Ok(Step::Next);
                }
                Fit::Other => return Ok(self.refuse_outdated(&meaning.statement, header)),
                Fit::Unknown => return Ok(self.ask_shape(&meaning.statement, named, copy)),
            }
        }
        self.bound_risk = self.bound_risk.max(brief.risk);
        self.refresh_for(&brief).await;
        self.note(&brief);
        self.count_text(&brief);
        self.bound_seal = self.seal_bound(&brief);
        self.note_bound(meaning.as_ref(), copy);
        let mut entry = Entry::client(Expect::Bind);
        if let Some(meaning) = meaning.filter(|_| named) {
            self.pass_renamed(header, &meaning.statement.server_name())?;
            entry.statement = Some(Arc::clone(&meaning.statement));
        } else {
            self.pass(header, true);
        }
        self.pipeline.push(entry);
        Ok(Step::Next)
    }

    /// What the name at this place of the message at the front stands for, if it came by Parse.
    pub(super) fn meaning(&self, name: &std::ops::Range<usize>) -> Option<Arc<Meaning>> {
        if name.is_empty() {
            let unnamed = self.prepared.unnamed.as_ref();
            return unnamed.map(|unnamed| Arc::clone(&unnamed.meaning));
        }
        self.prepared.get(&self.input[name.clone()]).map(Arc::clone)
    }

    /// Sees to it that the connection has a copy of it. Gives what is known of that.
    fn copy(&mut self, meaning: Option<&Meaning>, named: bool) -> Option<Arc<Noted>> {
        if !named {
            self.ensure_unnamed();
            let lease = self.lease.as_ref().filter(|_| meaning.is_some())?;
            return Some(Arc::clone(&lease.carried.unnamed_shape));
        }
        let statement = &meaning?.statement;
        self.ensure(statement);
        self.lease.as_ref()?.carried.statements.shape(statement.id)
    }

    /// Whether what the client was told of the statement holds for the connection's copy.
    fn fit(&self, meaning: &Meaning, copy: &Noted, header: Header) -> Fit {
        let told = meaning.told.get();
        if told.is_blank() {
            return Fit::Good;
        }
        match told.holds_for(&copy.get()) {
            Some(true) => Fit::Good,
            _ if told.is_portals() && self.describes_next(header) => Fit::Good,
            Some(false) => Fit::Other,
            None => Fit::Unknown,
        }
    }

    /// Whether a Describe of the portal comes right behind the Bind at the front: then the client hears what
    /// the copy returns before any row of it.
    fn describes_next(&self, header: Header) -> bool {
        let rest = self.input.get(header.len..).unwrap_or_default();
        let Ok(Some(next)) = frame::whole(rest) else {
            return false;
        };
        let portal = names::portal_range(&self.input).ok().flatten();
        let described = frontend::read_describe(next).ok();
        let mine = |portal| described == Some((Target::Portal, &self.input[portal]));
        portal.is_some_and(mine)
    }

    /// Asks the copy for its description. The Bind waits for the answer: what it starts can't be taken back.
    fn ask_shape(&mut self, statement: &Arc<Statement>, named: bool, copy: &Arc<Noted>) -> Step {
        let name = if named {
            statement.server_name()
        } else {
            String::new()
        };
        // A name of our own, which fits.
        let _ = frontend::describe(&mut self.to_server, Target::Statement, &name);
        frontend::flush(&mut self.to_server);
        let mut entry = Entry::own(Expect::Describe, Own::Statement);
        entry.statement = named.then(|| Arc::clone(statement));
        entry.listener = Some(Box::new(Listener {
            copy: Arc::clone(copy),
            told: None,
            portal: false,
        }));
        self.pipeline.push(entry);
        self.barrier = true;
        Step::Wait
    }

    /// Has the node fail the batch, in the words that one server has for it.
    fn refuse_outdated(&mut self, statement: &Statement, header: Header) -> Step {
        statement.outdate();
        let mut entry = Entry::client(Expect::Parse);
        entry.words = Some(outdated_words());
        self.pipeline.push(entry);
        let _ = frontend::parse(&mut self.to_server, REFUSED_NAME, UNPARSABLE, &[]);
        self.pass(header, false);
        Step::Next
    }

    /// Remembers what a Describe of the portal, or its Execute, is about.
    fn note_bound(&mut self, meaning: Option<&Arc<Meaning>>, copy: Option<Arc<Noted>>) {
        let portal = names::portal_range(&self.input).ok().flatten();
        let portal = portal.map_or_else(Bytes::new, |p| Bytes::copy_from_slice(&self.input[p]));
        let both = meaning.map(Arc::clone).zip(copy);
        self.bound = both.map(|(meaning, copy)| Bound {
            portal: portal.clone(),
            meaning,
            copy,
        });
        let statement = meaning.map(|meaning| Arc::clone(&meaning.statement));
        let unseen = statement.as_ref().is_some_and(is_unseen);
        if unseen || !self.portals.is_empty() {
            self.note_portal(unseen.then_some(portal), statement);
        }
    }

    pub(super) async fn describe(&mut self, header: Header) -> Result<Step, End> {
        if self.input.len() < header.len {
            return Ok(Step::More);
        }
        let name = names::statement_range(&self.input).map_err(violation)?;
        let brief = name.as_ref().map(|name| {
            let meaning = self.meaning(name);
            self.brief_of(meaning.as_ref().map(|meaning| &meaning.statement))
        });
        let want = brief.as_ref().map_or(Want::Any, Want::Text);
        if let Some(step) = self.connected(header, want).await? {
            return Ok(step);
        }
        self.in_batch = true;
        let mut entry = Entry::client(Expect::Describe);
        let Some(name) = name else {
            entry.portal = true;
            entry.listener = self.portal_listener();
            self.pipeline.push(entry);
            self.pass(header, true);
            return Ok(Step::Next);
        };
        let named = !name.is_empty();
        let meaning = self.meaning(&name);
        let copy = self.copy(meaning.as_deref(), named);
        if let Some((meaning, copy)) = meaning.as_ref().zip(copy) {
            let told = meaning.told.get();
            if !told.is_whole() || told != copy.get() {
                let told = Some(Arc::clone(&meaning.told));
                entry.listener = Some(Box::new(Listener {
                    copy,
                    told,
                    portal: false,
                }));
            }
        }
        if let Some(meaning) = meaning.filter(|_| named) {
            self.pass_renamed(header, &meaning.statement.server_name())?;
            entry.statement = Some(Arc::clone(&meaning.statement));
        } else {
            self.pass(header, true);
        }
        self.pipeline.push(entry);
        Ok(Step::Next)
    }

    /// Who takes down the answer to the Describe of a portal at the front, where it may say something new.
    fn portal_listener(&self) -> Option<Box<Listener>> {
        let portal = names::portal_range(&self.input).ok().flatten()?;
        let bound = self.bound.as_ref()?;
        let told = bound.meaning.told.get();
        if bound.portal != self.input[portal] || told.has_columns_of(&bound.copy.get()) {
            return None;
        }
        Some(Box::new(Listener {
            copy: Arc::clone(&bound.copy),
            told: Some(Arc::clone(&bound.meaning.told)),
            portal: true,
        }))
    }

    pub(super) fn names_missing(&self) -> Result<Step, End> {
        if self.input.len() < NAMES_BYTES_MAX {
            return Ok(Step::More);
        }
        Err(crate::error::ClientError::protocol("a name is too long").into())
    }
}

/// As `RevalidateCachedQuery` (`plancache.c`) says it: drivers know it by code and routine, and prepare anew.
fn outdated_words() -> Bytes {
    let message = "cached plan must not change result type";
    let report = Report::new(Severity::Error, "0A000", message)
        .with(field::FILE, "plancache.c")
        .with(field::ROUTINE, "RevalidateCachedQuery");
    let mut out = BytesMut::new();
    report.put_error(&mut out);
    out.freeze()
}

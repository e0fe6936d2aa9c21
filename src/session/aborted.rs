//! A transaction that has failed before any node heard of it: what its client says is answered here until he ends it.
//!
//! Its BEGIN was answered, and then there was no connection, or the node refused it. As on one server nothing is
//! run and everything is answered with 25P02, until COMMIT or ROLLBACK comes, by either protocol. It guards the
//! promise that nothing which the client means for that transaction is ever run outside of it.
//!
//! What only a parser knows is told less exactly than by one server: a text with a syntax error gets 25P02 too, and so
//! does ROLLBACK TO, since there can be no savepoint.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::ClientError;
use crate::session::brief::{Brief, Control, facts_of};
use crate::session::client;
use crate::session::prepared::Statement;
use crate::session::relay::{End, Session};
use crate::session::requests::{Step, TEXT_BYTES_MAX, text_of, violation};
use crate::sql::statement::Kind;
use crate::wire::error::WireError;
use crate::wire::frame::{HEADER_BYTES, Header};
use crate::wire::message::frontend::{self, Target};
use crate::wire::message::{backend, names, rows};

impl Session {
    /// Answers the message at the front. Nothing is awaited from a node.
    pub(super) async fn aborted(&mut self, header: Header) -> Result<Step, End> {
        // Of a Bind only the names are looked at; it may be larger than what is kept.
        let whole = !matches!(header.tag, b'B' | b'd' | b'F');
        if whole && header.len > TEXT_BYTES_MAX {
            return Ok(self.refuse_aborted(header));
        }
        if whole && self.input.len() < header.len {
            return Ok(Step::More);
        }
        match header.tag {
            b'Q' => return self.aborted_query(header).await,
            b'P' => return self.aborted_parse(header),
            b'B' => return self.aborted_bind(header),
            b'D' => return self.aborted_describe(header),
            b'E' => return self.aborted_execute(header),
            b'C' => self.aborted_close(header)?,
            b'F' => return Ok(self.refuse_aborted(header)),
            b'S' => {
                self.sync_here(header);
                return Ok(Step::Next);
            }
            // COPY data and Flush, for which there is nothing.
            _ => {}
        }
        self.pass(header, false);
        Ok(Step::Next)
    }

    /// Says that the transaction has failed: the first time why, where nobody was there to be told.
    fn refuse_aborted(&mut self, header: Header) -> Step {
        let why = self.deferred.why.take();
        self.refuse(header, &why.unwrap_or(ClientError::TransactionAborted))
    }

    /// COMMIT of a transaction of whose failure its client has not heard: it fails, and the transaction is over, as on
    /// one server. The tag ROLLBACK would be taken for success.
    fn refuse_commit(&mut self, header: Header) -> Step {
        let why = self.deferred.why.take();
        self.end_failed(false);
        self.refuse(header, &why.unwrap_or(ClientError::TransactionLost))
    }

    /// Answers the message at the front with an error, and ignores all until Sync where it is of a batch.
    pub(super) fn refuse(&mut self, header: Header, error: &ClientError) -> Step {
        client::put_error(&mut self.to_client, &error.report());
        if matches!(header.tag, b'Q' | b'F') {
            backend::ready(&mut self.to_client, self.status);
        } else {
            self.pipeline.skip();
        }
        self.pass(header, false);
        Step::Next
    }

    async fn aborted_query(&mut self, header: Header) -> Result<Step, End> {
        self.end_unnamed();
        self.count_text(&Brief::default());
        let text = std::str::from_utf8(text_of(&self.input[HEADER_BYTES..header.len]));
        let facts = text.map(|text| facts_of(text, self.standard_strings()));
        let Ok(facts) = facts else {
            return Ok(self.refuse_aborted(header));
        };
        let chain = match facts.statements.first().map(|one| &one.kind) {
            Some(Kind::Commit { .. }) if self.deferred.why.is_some() => {
                return Ok(self.refuse_commit(header));
            }
            Some(Kind::Commit { chain } | Kind::Rollback { chain }) => *chain,
            Some(_) => return Ok(self.refuse_aborted(header)),
            None => {
                backend::empty_query(&mut self.to_client);
                backend::ready(&mut self.to_client, self.status);
                self.pass(header, false);
                return Ok(Step::Next);
            }
        };
        self.end_aborted(chain);
        if let [first, _, ..] = facts.statements.as_slice() {
            // What stands behind is no longer of this transaction. It goes where it would go by itself, and its words
            // stay where they are, for errors tell their place.
            let ended = &mut self.input[HEADER_BYTES..header.len][first.bytes.clone()];
            ended.fill(b' ');
            return Box::pin(self.message(header)).await;
        }
        backend::ready(&mut self.to_client, self.status);
        self.count_ready();
        self.pass(header, false);
        Ok(Step::Next)
    }

    /// The end of the transaction, whichever word it was: one server calls it ROLLBACK too.
    fn end_aborted(&mut self, chain: bool) {
        // A tag of our own, so it fits.
        let _ = backend::complete(&mut self.to_client, "ROLLBACK");
        self.end_failed(chain);
    }

    /// What ends the transaction may be prepared, under a name or none; it is put on a connection when there is one.
    fn aborted_parse(&mut self, header: Header) -> Result<Step, End> {
        let Some(name) = names::statement_range(&self.input).map_err(violation)? else {
            return self.names_missing();
        };
        let tail = Bytes::copy_from_slice(&self.input[name.end + 1..header.len]);
        let name = Bytes::copy_from_slice(&self.input[name]);
        if name.is_empty() {
            // Also where the new one is refused.
            self.end_unnamed();
        }
        let briefs = self.briefs();
        let brief = self.brief(&briefs, text_of(&tail));
        if brief.control.ends().is_none() {
            return Ok(self.refuse_aborted(header));
        }
        if let Some(error) = self.parse_fault(&name) {
            return Ok(self.refuse(header, &error));
        }
        if name.is_empty() {
            let statement = Arc::new(Statement::new(0, tail, brief));
            self.prepared.keep_unnamed(statement);
        } else {
            let digest = self.state.digest().map(|digest| digest ^ self.scope);
            let statement = self.shared.relay.shelf.get(digest, &tail, &brief);
            self.prepared.name(&name, Some(statement));
        }
        backend::parse_complete(&mut self.to_client);
        self.pass(header, false);
        Ok(Step::Next)
    }

    fn aborted_bind(&mut self, header: Header) -> Result<Step, End> {
        let Some(name) = names::statement_range(&self.input).map_err(violation)? else {
            return self.names_missing();
        };
        let end = match self.meaning(&name) {
            Some(meaning) => {
                let control = meaning.statement.brief.control;
                control.ends().map(|_| control)
            }
            None => return Ok(self.refuse_unknown(header, name)),
        };
        let portal = names::portal_range(&self.input).map_err(violation)?;
        let Some((portal, control)) = portal.zip(end) else {
            return Ok(self.refuse_aborted(header));
        };
        self.count_text(&Brief::default());
        self.deferred.end = Some((Bytes::copy_from_slice(&self.input[portal]), control));
        backend::bind_complete(&mut self.to_client);
        self.pass(header, false);
        Ok(Step::Next)
    }

    fn refuse_unknown(&mut self, header: Header, name: std::ops::Range<usize>) -> Step {
        let name = String::from_utf8_lossy(&self.input[name]).into_owned();
        self.refuse(header, &ClientError::NoStatement { name })
    }

    fn refuse_portal(&mut self, header: Header, name: &[u8]) -> Step {
        let name = String::from_utf8_lossy(name).into_owned();
        self.refuse(header, &ClientError::NoPortal { name })
    }

    /// What a portal ends the transaction with, if it does.
    fn ending(&self, portal: &[u8]) -> Option<Control> {
        let end = self.deferred.end.as_ref();
        end.filter(|(name, _)| name == portal)
            .map(|(_, control)| *control)
    }

    fn aborted_describe(&mut self, header: Header) -> Result<Step, End> {
        if let Some(name) = names::statement_range(&self.input).map_err(violation)? {
            match self.meaning(&name) {
                None => return Ok(self.refuse_unknown(header, name)),
                Some(meaning) if meaning.statement.brief.control.ends().is_none() => {
                    return Ok(self.refuse_aborted(header));
                }
                // It has no parameters, and so it fits.
                Some(_) => rows::parameters(&mut self.to_client, &[]).map_err(violation)?,
            }
        } else {
            let name = self.portal()?;
            if self.ending(&name).is_none() {
                return Ok(self.refuse_portal(header, &name));
            }
        }
        backend::no_data(&mut self.to_client);
        self.pass(header, false);
        Ok(Step::Next)
    }

    /// The portal that the whole message at the front names.
    fn portal(&self) -> Result<Bytes, End> {
        let range = names::portal_range(&self.input).map_err(violation)?;
        let range = range.ok_or(WireError::Malformed("name of a portal"));
        Ok(Bytes::copy_from_slice(
            &self.input[range.map_err(violation)?],
        ))
    }

    fn aborted_execute(&mut self, header: Header) -> Result<Step, End> {
        let name = self.portal()?;
        let Some(control) = self.ending(&name) else {
            return Ok(self.refuse_portal(header, &name));
        };
        if matches!(control, Control::Commit { .. }) && self.deferred.why.is_some() {
            return Ok(self.refuse_commit(header));
        }
        self.end_aborted(control.ends() == Some(true));
        if self.lease.is_none() {
            // With a connection the Sync that follows goes to the node, and its answer counts.
            self.count_ready();
        }
        self.pass(header, false);
        Ok(Step::Next)
    }

    fn aborted_close(&mut self, header: Header) -> Result<(), End> {
        let (target, name) = frontend::read_close(&self.input[..header.len]).map_err(violation)?;
        let name = Bytes::copy_from_slice(name);
        match target {
            Target::Portal if self.ending(&name).is_some() => self.deferred.end = None,
            Target::Statement if name.is_empty() => self.end_unnamed(),
            Target::Statement if self.prepared.get(&name).is_some() => {
                self.prepared.name(&name, None);
            }
            _ => {}
        }
        backend::close_complete(&mut self.to_client);
        Ok(())
    }
}

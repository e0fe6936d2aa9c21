//! What clients are told of what they had under way when the connection to the writer was lost. Pure.
//!
//! It guards that nobody is told 40001, which drivers answer by running it all again, where a commit may have
//! happened, nor that anything is done that is not known to be; and that each Query and each Sync has its one
//! `ReadyForQuery`.

use bytes::{Bytes, BytesMut};

use crate::cluster::commits::Fate;
use crate::error::ClientError;
use crate::session::pipeline::{Entry, Expect, Risk, Seal};
use crate::wire::message::backend::{self, Status};

/// What stands in for the rest of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// This error.
    Error(ClientError),
    /// The transaction is rolled back, as it was asked to be.
    RolledBack,
    /// It is committed: these are the answers.
    Committed(Bytes),
    /// Nothing: all of it was said.
    Nothing,
}

/// The end of one answer, and the state to be told behind it, unless its Sync is yet to come.
pub type Last = (Word, Option<Status>);

/// Everything up to one `ReadyForQuery`.
#[derive(Default)]
struct Unit {
    client: bool,
    messages: usize,
    /// What brings its `ReadyForQuery`.
    end: Option<Expect>,
    rolls_back: bool,
    risk: Risk,
    seal: Option<Seal>,
    /// The answers of a COMMIT.
    said: BytesMut,
    /// Something else is asked too, of which the answer is not known.
    unsaid: bool,
}

impl Unit {
    fn add(&mut self, entry: &Entry) {
        self.messages += 1;
        self.client |= entry.own.is_none();
        self.risk = self.risk.max(entry.risk);
        self.rolls_back |= entry.rolls_back;
        self.seal = self.seal.or(entry.seal);
        if entry.own.is_some() {
            return;
        }
        let plain = entry.seal.is_some_and(|seal| seal.plain);
        match entry.expect {
            Expect::Parse => backend::parse_complete(&mut self.said),
            Expect::Bind => backend::bind_complete(&mut self.said),
            Expect::Close => backend::close_complete(&mut self.said),
            // A tag of our own, so it fits.
            Expect::Query | Expect::Execute if plain => {
                let _ = backend::complete(&mut self.said, "COMMIT");
            }
            // A COMMIT returns nothing; anything else is unsaid in any case.
            Expect::Describe if entry.portal => backend::no_data(&mut self.said),
            Expect::Sync => {}
            _ => self.unsaid = true,
        }
    }

    /// What its client is told of its commit.
    fn word(&self, fate: Option<Fate>) -> Word {
        match fate.filter(|_| self.seal.is_some()) {
            None => Word::Error(ClientError::CommitUnknown),
            Some(Fate::Lost) => Word::Error(ClientError::TransactionLost),
            Some(Fate::Committed) if self.unsaid => Word::Error(ClientError::AnswerLost),
            Some(Fate::Committed) => Word::Committed(Bytes::copy_from_slice(&self.said)),
        }
    }
}

/// The last words to everything that is awaited by a client whose transaction is in this state, and the state in which
/// that leaves it. `in_batch`: a Sync is still to come. `fate`: what became of the one commit that went with a token, if that is known.
pub fn last_words<'a>(
    status: Status,
    awaited: impl Iterator<Item = &'a Entry>,
    in_batch: bool,
    fate: Option<Fate>,
) -> (Vec<Last>, Status) {
    let units = units(awaited, in_batch);
    let mut state = status;
    let mut words = Vec::new();
    for (at, unit) in units.iter().enumerate() {
        let word = match state {
            Status::Idle => alone(unit, fate),
            Status::Open | Status::Failed if unit.rolls_back => {
                state = Status::Idle;
                Word::RolledBack
            }
            _ if unit.risk == Risk::Commit => {
                state = Status::Idle;
                unit.word(fate)
            }
            Status::Open => {
                state = Status::Failed;
                let rest = units[at..].iter().take_while(|unit| !unit.rolls_back);
                // What comes behind may have committed it.
                let commits = rest.map(|unit| unit.risk).max() == Some(Risk::Commit);
                Word::Error(if commits {
                    ClientError::CommitUnknown
                } else {
                    ClientError::TransactionLost
                })
            }
            Status::Failed => Word::Error(ClientError::TransactionAborted),
        };
        words.push((word, unit.end.map(|_| state)));
    }
    if words.is_empty() && state == Status::Open {
        state = Status::Failed;
    }
    (words, state)
}

/// Outside of transactions.
fn alone(unit: &Unit, fate: Option<Fate>) -> Word {
    match unit.risk {
        Risk::None if unit.messages == 1 && unit.end == Some(Expect::Sync) => Word::Nothing,
        Risk::None => Word::Error(ClientError::ReadBroken),
        // Without its Sync nothing of a batch is committed.
        Risk::Write if unit.end.is_none() => Word::Error(ClientError::TransactionLost),
        Risk::Write | Risk::Commit => unit.word(fate),
    }
}

fn units<'a>(awaited: impl Iterator<Item = &'a Entry>, in_batch: bool) -> Vec<Unit> {
    let mut units = Vec::new();
    let mut open = Unit::default();
    for entry in awaited {
        if matches!(entry.expect, Expect::Local | Expect::CopyEnd) {
            continue;
        }
        open.add(entry);
        if entry.expect.ends() {
            open.end = Some(entry.expect);
            let unit = std::mem::take(&mut open);
            // The proxy's own question goes to nobody.
            if entry.own.is_none() {
                units.push(unit);
            }
        }
    }
    if open.client || in_batch {
        units.push(open);
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::pipeline::Own;

    fn entry(expect: Expect, risk: Risk) -> Entry {
        Entry {
            risk,
            ..Entry::client(expect)
        }
    }

    fn told(status: Status, awaited: &[Entry], in_batch: bool) -> String {
        told_knowing(None, status, awaited, in_batch)
    }

    fn told_knowing(
        fate: Option<Fate>,
        status: Status,
        awaited: &[Entry],
        in_batch: bool,
    ) -> String {
        let (words, state) = last_words(status, awaited.iter(), in_batch, fate);
        let letter = |status| match status {
            Status::Idle => 'I',
            Status::Open => 'T',
            Status::Failed => 'E',
        };
        let mut text = String::new();
        for (word, ready) in words {
            match word {
                Word::Error(error) => text.push_str(&error.report().sqlstate),
                Word::RolledBack => text.push_str("rollback"),
                Word::Committed(answers) => {
                    // The types of its frames.
                    let mut rest = &answers[..];
                    while let Ok(Some(frame)) = crate::wire::frame::whole(rest) {
                        text.push(char::from(frame[0]));
                        rest = &rest[frame.len()..];
                    }
                }
                Word::Nothing => {}
            }
            text.extend(ready.map(letter));
            text.push(' ');
        }
        text.push(letter(state));
        text
    }

    #[test]
    fn each_state_has_its_words() {
        use Expect::{Bind, Execute, Query, Sync};
        use Status::{Failed, Idle, Open};
        let none = || entry(Query, Risk::None);
        let write = || entry(Query, Risk::Write);
        let commit = || entry(Query, Risk::Commit);
        let rollback = || Entry {
            rolls_back: true,
            ..none()
        };
        let probe = || Entry::own(Query, Own::Probe);
        // Nothing under way.
        assert_eq!(told(Idle, &[], false), "I");
        assert_eq!(told(Open, &[], false), "E");
        assert_eq!(told(Failed, &[], false), "E");
        assert_eq!(told(Idle, &[probe()], false), "I");
        // Alone.
        assert_eq!(told(Idle, &[none()], false), "40001I I");
        assert_eq!(told(Idle, &[write()], false), "08007I I");
        assert_eq!(told(Idle, &[probe(), commit()], false), "08007I I");
        let mut batch = vec![entry(Bind, Risk::None), entry(Execute, Risk::Write)];
        assert_eq!(told(Idle, &batch, true), "40001 I");
        batch.extend([entry(Sync, Risk::Write), write()]);
        assert_eq!(told(Idle, &batch, false), "08007I 08007I I");
        // All was said but for the state.
        assert_eq!(told(Idle, &[entry(Sync, Risk::None)], false), "I I");
        assert_eq!(told(Idle, &[entry(Sync, Risk::Write)], false), "08007I I");
        // In a transaction.
        assert_eq!(told(Open, &[write()], false), "40001E E");
        assert_eq!(told(Open, &[], true), "40001 E");
        assert_eq!(told(Open, &[commit()], false), "08007I I");
        assert_eq!(told(Open, &[rollback()], false), "rollbackI I");
        assert_eq!(told(Failed, &[rollback()], false), "rollbackI I");
        let queries = [write(), none(), rollback(), write()];
        assert_eq!(
            told(Open, &queries, false),
            "40001E 25P02E rollbackI 08007I I"
        );
        assert_eq!(told(Open, &[write(), commit()], false), "08007E 08007I I");
    }

    #[test]
    fn a_commit_whose_fate_is_known_has_its_word() {
        use Expect::{Bind, Describe, Execute, Parse, Query, Sync};
        use Status::{Idle, Open};
        let (kept, lost) = (Some(Fate::Committed), Some(Fate::Lost));
        let sealed = |expect, risk, plain| Entry {
            seal: Some(Seal { count: 1, plain }),
            ..entry(expect, risk)
        };
        let seal = || Entry::own(Bind, Own::Seal);
        let query = [seal(), sealed(Query, Risk::Commit, true)];
        assert_eq!(told_knowing(kept, Open, &query, false), "CI I");
        assert_eq!(told_knowing(lost, Open, &query, false), "40001I I");
        // What is known of another is not known of this one.
        let other = [entry(Query, Risk::Commit)];
        assert_eq!(told_knowing(kept, Open, &other, false), "08007I I");
        let mut batch = vec![entry(Parse, Risk::None), seal(), entry(Bind, Risk::None)];
        batch.push(sealed(Execute, Risk::Commit, true));
        batch.push(entry(Sync, Risk::Commit));
        assert_eq!(told_knowing(kept, Open, &batch, false), "12CI I");
        assert_eq!(told_knowing(lost, Open, &batch, false), "40001I I");
        let portals = Entry {
            portal: true,
            ..entry(Describe, Risk::None)
        };
        batch.insert(3, portals);
        assert_eq!(told_knowing(kept, Open, &batch, false), "12nCI I");
        batch.insert(3, entry(Describe, Risk::None));
        let (words, _) = last_words(Open, batch.iter(), false, kept);
        assert_eq!(words[0].0, Word::Error(ClientError::AnswerLost));
        let alone = [
            entry(Execute, Risk::Write),
            sealed(Sync, Risk::Write, false),
        ];
        assert_eq!(told_knowing(lost, Idle, &alone, false), "40001I I");
        let (words, _) = last_words(Idle, alone.iter(), false, kept);
        assert_eq!(words[0].0, Word::Error(ClientError::AnswerLost));
    }
}

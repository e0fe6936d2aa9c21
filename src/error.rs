//! Errors that reach a client, as types: their SQLSTATE, who is to blame and whether to try again.
//!
//! [`ClientError::report`] is the one place where a cause becomes a code and a text; its match names
//! every variant, so a new one can't be forgotten. What a node says for itself is passed on in the
//! node's own words ([`NodeWords`]). Secrets, literals and parameters never stand in these texts.

use std::borrow::Cow;
use std::time::Duration;

/// Who would have to act for the error not to happen again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The client sent what can't be done.
    Client,
    /// A node failed or refused.
    Node,
    /// The proxy is at a limit, stopping or wrong.
    Proxy,
}

/// `PostgreSQL`'s severity: whether the connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed, the session goes on.
    Error,
    /// The session ends.
    Fatal,
}

impl Severity {
    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
        }
    }
}

/// What a node said, in its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeWords {
    /// The SQLSTATE.
    pub sqlstate: String,
    /// The message.
    pub message: String,
    /// The detail, where there was one.
    pub detail: Option<String>,
    /// The hint, where there was one.
    pub hint: Option<String>,
}

/// What the proxy refuses because it could not be kept on all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A startup with `replication=`.
    Replication,
    /// PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED.
    TwoPhase,
    /// CREATE SUBSCRIPTION.
    Subscription,
    /// Large objects.
    LargeObjects,
    /// EXPLAIN ANALYZE of what makes a table.
    ExplainMakesTable,
    /// The protocol's function call message.
    FunctionCall,
    /// A command on roles or databases in one Query with ROLLBACK or SAVEPOINT.
    MixedQuery,
    /// A command on roles or event triggers behind DDL of the same Query that it may depend on.
    BehindDdl,
    /// A password written so that it was not read.
    OddPassword,
    /// Roles and the like changed inside DO, where nobody sees it.
    SharedInside,
    /// ALTER DATABASE ... RENAME, or CREATE DATABASE from one that is replicated.
    HeldDatabase,
    /// The proxy's own schema, publication or event triggers.
    OwnObjects,
    /// A write in a template database, which is not replicated.
    Template,
}

/// Everything of the proxy's own that a client may be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// `limits.max_clients` are connected.
    #[error("too many clients")]
    TooManyClients,
    /// No connection to a node became free in time.
    #[error("no connection became free within {waited:?}")]
    PoolTimeout {
        /// How long the client waited.
        waited: Duration,
        /// `pool.max_connections`.
        max_connections: usize,
    },
    /// The queue for connections is full.
    #[error("{queue_max} clients wait already")]
    QueueFull {
        /// `pool.queue_max`.
        queue_max: usize,
    },
    /// The proxy is stopping.
    #[error("shutting down")]
    ShuttingDown,
    /// A connection is needed that no known key of the role opens.
    #[error("no key of the role opens a node")]
    NoKey {
        /// The role.
        user: String,
    },
    /// The role's name stands for another role by now, or for one that has lost a right.
    #[error("the role is no longer the same")]
    OtherRole {
        /// The name.
        user: String,
    },
    /// Wrong password, unknown role, expired password or none: one text for all.
    #[error("password authentication failed")]
    AuthenticationFailed {
        /// The name the client gave.
        user: String,
    },
    /// The client's channel binding contradicts the connection it came over.
    #[error("channel binding")]
    ChannelBinding,
    /// The startup packet names no user.
    #[error("no user name")]
    NoUser,
    /// The handshake took longer than `limits.handshake_timeout_ms`.
    #[error("handshake timed out")]
    HandshakeTimeout,
    /// Bytes that are not the protocol.
    #[error("protocol violation: {0}")]
    Protocol(Cow<'static, str>),
    /// A protocol version other than 3.
    #[error("unsupported protocol {major}.{minor}")]
    UnsupportedProtocol {
        /// What was asked for.
        major: u16,
        /// What was asked for.
        minor: u16,
    },
    /// A startup `options` string that can't be read.
    #[error("bad startup options")]
    StartupOptions {
        /// The switch.
        switch: String,
    },
    /// Text that is not in the encoding it claims.
    #[error("invalid encoding")]
    Encoding,
    /// What can't be replicated.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// A write on the read-only port.
    #[error("read-only port")]
    ReadOnlyPort {
        /// The statement's command, in capitals.
        command: Cow<'static, str>,
    },
    /// Fewer than a majority of the nodes are in sync.
    #[error("no majority: {in_sync} of {total}")]
    NoQuorum {
        /// Nodes in sync.
        in_sync: usize,
        /// Nodes configured.
        total: usize,
    },
    /// The node that would have to answer can't be reached.
    #[error("node {node} can't be reached")]
    NodeUnreachable {
        /// Its name.
        node: String,
    },
    /// A node answered, but not as a server that the proxy can use.
    #[error("node {node}: {fault}")]
    NodeFault {
        /// Its name.
        node: String,
        /// What was wrong.
        fault: String,
    },
    /// The cluster has no writer, and had none for so long.
    #[error("no writer for {waited:?}")]
    NoWriter {
        /// How long the client waited.
        waited: Duration,
    },
    /// What the session held on the writer is lost with it.
    #[error("held on a lost writer: {what}")]
    Held {
        /// What it held.
        what: &'static str,
    },
    /// The connection to the writer was lost with the transaction still open: nothing of it stays.
    #[error("transaction lost with its connection")]
    TransactionLost,
    /// The connection to the writer was lost, or no majority answered, while COMMIT ran.
    #[error("outcome unknown")]
    CommitUnknown,
    /// The transaction was committed, and the connection on which its answer should have come was lost.
    #[error("an answer was lost")]
    AnswerLost,
    /// The node that answered a read was lost, or had to be distrusted, when the client had a part of the answer.
    #[error("a read was broken off")]
    ReadBroken,
    /// A read-only transaction that runs on a follower needs the writer, and can't begin anew there.
    #[error("a transaction that must run on the writer")]
    NotHere,
    /// `synapsedb.read_consistency` set to something else than it takes.
    #[error("no such consistency")]
    BadConsistency {
        /// What was given.
        value: String,
    },
    /// Cancelled by the client while the proxy itself made it wait.
    #[error("cancelled")]
    Cancelled,
    /// Extended protocol: no such statement.
    #[error("no such prepared statement")]
    NoStatement {
        /// Its name; empty for the unnamed one.
        name: String,
    },
    /// Extended protocol: a statement of that name exists.
    #[error("prepared statement exists")]
    StatementExists {
        /// Its name.
        name: String,
    },
    /// A portal that the transaction has not got.
    #[error("no portal {name}")]
    NoPortal {
        /// Its name.
        name: String,
    },
    /// A command in a transaction that has failed.
    #[error("transaction is aborted")]
    TransactionAborted,
    /// A command that needs to stand outside a transaction.
    #[error("inside a transaction")]
    InTransaction {
        /// The statement's command, in capitals.
        command: Cow<'static, str>,
    },
    /// Larger than the proxy lets one client make it hold.
    #[error("too large: {what}")]
    TooLarge {
        /// What was too large.
        what: &'static str,
    },
    /// What every node must do itself failed on all but the writer, which has taken it back.
    #[error("failed elsewhere: {why}")]
    FailedElsewhere {
        /// Which node said what.
        why: String,
    },
    /// A node's own error, passed on.
    #[error("node says {}: {}", .0.sqlstate, .0.message)]
    Node(Box<NodeWords>),
    /// A broken invariant: the session ends and the log says why.
    #[error("internal: {0}")]
    Internal(Cow<'static, str>),
}

/// What the client is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whether the session goes on.
    pub severity: Severity,
    /// Five characters.
    pub sqlstate: Cow<'static, str>,
    /// The message.
    pub message: Cow<'static, str>,
    /// The detail.
    pub detail: Option<Cow<'static, str>>,
    /// The hint.
    pub hint: Option<Cow<'static, str>>,
    /// Who is to blame.
    pub blame: Blame,
    /// Whether the same thing may succeed when tried again.
    pub retry: bool,
}

impl Report {
    fn new(
        severity: Severity,
        blame: Blame,
        sqlstate: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            severity,
            sqlstate: Cow::Borrowed(sqlstate),
            message: message.into(),
            detail: None,
            hint: None,
            blame,
            retry: false,
        }
    }

    fn error(blame: Blame, sqlstate: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Severity::Error, blame, sqlstate, message)
    }

    fn fatal(blame: Blame, sqlstate: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Severity::Fatal, blame, sqlstate, message)
    }

    fn detail(mut self, text: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(text.into());
        self
    }

    fn hint(mut self, text: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(text.into());
        self
    }

    fn retry(mut self) -> Self {
        self.retry = true;
        self
    }

    /// The same, ending the session: whatever goes wrong before the session has begun is fatal.
    #[must_use]
    pub fn ending_the_session(mut self) -> Self {
        self.severity = Severity::Fatal;
        self
    }
}

impl ClientError {
    /// A protocol violation with a fixed text.
    pub fn protocol(text: &'static str) -> Self {
        Self::Protocol(Cow::Borrowed(text))
    }

    /// The one place where causes become codes and texts.
    #[allow(clippy::too_many_lines, reason = "one arm a variant, nothing else")]
    pub fn report(&self) -> Report {
        use Blame::{Client, Node, Proxy};
        match self {
            Self::TooManyClients => Report::fatal(Proxy, "53300", "sorry, too many clients already")
                .hint("limits.max_clients of the proxy is reached.")
                .retry(),
            Self::PoolTimeout { waited, max_connections } => {
                let text = format!("no connection to a node became free within {} ms", waited.as_millis());
                Report::error(Proxy, "53300", text)
                    .detail(format!("All {max_connections} connections of this user and database are in use."))
                    .hint("Raise pool.max_connections, or look for sessions that stay in a transaction.")
                    .retry()
            }
            Self::QueueFull { queue_max } => Report::error(Proxy, "53300", "too many clients wait for a connection to a node")
                .detail(format!("{queue_max} clients of this user and database wait already."))
                .hint("Raise pool.max_connections or pool.queue_max, or look for sessions that stay in a transaction.")
                .retry(),
            Self::ShuttingDown => {
                Report::fatal(Proxy, "57P01", "terminating connection due to administrator command").retry()
            }
            Self::NoKey { user } => {
                let text = format!("terminating connection because no known key of role \"{user}\" opens a node any more");
                Report::fatal(Client, "57P01", text)
                    .detail("The role's password has changed since this session logged in.")
                    .hint("Connect again with the new password.")
            }
            Self::OtherRole { user } => {
                let text = format!("terminating connection because role \"{user}\" is no longer what this session logged in as");
                Report::fatal(Client, "57P01", text)
                    .detail("It was renamed, dropped and made again, or is a superuser no more.")
                    .hint("Connect again.")
            }
            Self::AuthenticationFailed { user } => {
                Report::fatal(Client, "28P01", format!("password authentication failed for user \"{user}\""))
            }
            Self::ChannelBinding => Report::fatal(Client, "28000", "SCRAM channel binding check failed"),
            Self::NoUser => Report::fatal(Client, "28000", "no PostgreSQL user name specified in startup packet"),
            Self::HandshakeTimeout => Report::fatal(Client, "57014", "canceling authentication due to timeout"),
            Self::Protocol(text) => Report::fatal(Client, "08P01", text.clone()),
            Self::UnsupportedProtocol { major, minor } => {
                let text = format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2");
                Report::fatal(Client, "0A000", text)
            }
            Self::StartupOptions { switch } => {
                let text = format!("invalid command-line argument for server process: {switch}");
                Report::fatal(Client, "42601", text).hint("Through this proxy options may hold -c NAME=VALUE and --NAME=VALUE.")
            }
            Self::Encoding => Report::fatal(Client, "22021", "invalid byte sequence for encoding \"UTF8\" in startup packet"),
            Self::Refused(refusal) => refusal.report(),
            Self::ReadOnlyPort { command } => {
                Report::error(Client, "25006", format!("cannot execute {command} in a read-only transaction"))
                    .hint("This is the read-only port; connect to the read-write one.")
            }
            Self::NoQuorum { in_sync, total } => {
                let text = format!("write quorum lost: {in_sync} of {total} nodes in sync");
                Report::error(Node, "25006", text)
                    .detail(format!("A commit needs {} nodes in sync. Reads are answered meanwhile.", total / 2 + 1))
                    .hint("Run it again when nodes are back; GET /status on the port for operators says what is wrong with each.")
                    .retry()
            }
            Self::NoWriter { waited } => Report::error(Node, "57P03", "the cluster has no writer")
                .detail(format!("None has taken office within {} ms.", waited.as_millis()))
                .hint("Run it again later; GET /status on the port for operators says what is wrong with each node.")
                .retry(),
            Self::Held { what } => {
                let text = format!("terminating connection because it held {what} on a writer that has left");
                Report::fatal(Node, "57P01", text)
                    .detail("That lived on one node only and is lost. Another node writes now, or soon will.")
                    .hint("Connect again, and make it anew.")
                    .retry()
            }
            Self::NodeUnreachable { node } => Report::error(Node, "57P03", format!("node \"{node}\" can't be reached")).retry(),
            Self::NodeFault { node, fault } => Report::error(Node, "08001", format!("node \"{node}\" could not be used: {fault}")),
            Self::TransactionLost => Report::error(Node, "40001", "the connection to the writer was lost inside the transaction")
                .detail("Nothing of the transaction was committed.")
                .hint("Run the transaction again.")
                .retry(),
            Self::CommitUnknown => Report::error(Node, "08007", "it is not known whether the transaction was committed")
                .detail("The connection to the writer was lost, or no majority answered, while COMMIT ran.")
                .hint("Look whether its effects are there before running it again."),
            Self::AnswerLost => Report::error(Node, "08007", "the transaction was committed, but its answer was lost with the writer")
                .detail("It is part of the history that the present writer goes on with.")
                .hint("Do not run it again."),
            Self::ReadBroken => Report::error(Node, "40001", "the node that answered was lost before its answer was whole")
                .hint("Run the statement again.")
                .retry(),
            Self::NotHere => Report::error(Proxy, "40001", "the read-only transaction can't go on at the node where it reads")
                .detail("What comes next must run on the writer.")
                .hint("Run the transaction again: it will begin there.")
                .retry(),
            Self::BadConsistency { value } => {
                let text = format!("invalid value for parameter \"synapsedb.read_consistency\": \"{value}\"");
                Report::error(Client, "22023", text).hint("Available values: strict, session, eventual.")
            }
            Self::Cancelled => Report::error(Client, "57014", "canceling statement due to user request"),
            Self::NoStatement { name } if name.is_empty() => {
                Report::error(Client, "26000", "unnamed prepared statement does not exist")
            }
            Self::NoStatement { name } => {
                Report::error(Client, "26000", format!("prepared statement \"{name}\" does not exist"))
            }
            Self::StatementExists { name } => {
                Report::error(Client, "42P05", format!("prepared statement \"{name}\" already exists"))
            }
            Self::NoPortal { name } => Report::error(Client, "34000", format!("portal \"{name}\" does not exist")),
            Self::TransactionAborted => {
                let text = "current transaction is aborted, commands ignored until end of transaction block";
                Report::error(Client, "25P02", text)
            }
            Self::InTransaction { command } => {
                Report::error(Client, "25001", format!("{command} cannot run inside a transaction block"))
            }
            Self::TooLarge { what } => Report::error(Client, "54000", format!("{what} is larger than the proxy allows")),
            Self::FailedElsewhere { why } => Report::error(Node, "58000", "the command failed on all other nodes and was taken back")
                .detail(why.clone())
                .hint("Every server must be able to run it by itself: directories, for instance, must be there on each."),
            Self::Node(words) => node_report(words),
            Self::Internal(text) => Report::fatal(Proxy, "XX000", format!("synapsedb: {text}")),
        }
    }
}

impl Refusal {
    fn report(self) -> Report {
        let refused = |message: &'static str, hint: &'static str| {
            Report::error(Blame::Client, "0A000", message).hint(hint)
        };
        match self {
            Self::Replication => refused(
                "replication connections are not supported through synapsedb",
                "Connect to a node directly for replication, pg_basebackup or pg_receivewal.",
            ),
            Self::TwoPhase => refused(
                "prepared transactions are not supported through synapsedb",
                "A prepared transaction would be lost with the node that holds it; use COMMIT.",
            ),
            Self::Subscription => refused(
                "subscriptions are not supported through synapsedb",
                "Rows of a subscription would reach one node only.",
            ),
            Self::ExplainMakesTable => refused(
                "EXPLAIN ANALYZE of a statement that makes a table is not supported through synapsedb",
                "The table would be made on one node only; explain the query alone, or leave out ANALYZE.",
            ),
            Self::LargeObjects => refused(
                "large objects are not supported through synapsedb",
                "PostgreSQL does not replicate large objects logically; use bytea.",
            ),
            Self::MixedQuery => refused(
                "a command on roles or databases can't share a query with ROLLBACK or SAVEPOINT through synapsedb",
                "Send the statements one by one.",
            ),
            Self::BehindDdl => refused(
                "DROP ROLE, REASSIGN OWNED and event triggers can't stand behind other DDL of the same query through synapsedb",
                "Send the statements one by one.",
            ),
            Self::OddPassword => refused(
                "a password written in this way can't be kept the same on all nodes",
                "Write it as one plain literal, without U& and not in pieces.",
            ),
            Self::SharedInside => refused(
                "roles, memberships, databases, tablespaces and event triggers can't be changed inside DO through synapsedb",
                "Run the command by itself; what DO does to them would be done on one node only.",
            ),
            Self::HeldDatabase => refused(
                "a replicated database can't be renamed, nor be the template of another",
                "The proxy's streams are connected to it. Make a new database, and dump the old one into it.",
            ),
            Self::OwnObjects => Report::error(
                Blame::Client,
                "42501",
                "schema and publication synapsedb and the event triggers \"!synapsedb...\" belong to synapsedb",
            )
            .hint("`synapsedb release` takes them off the nodes, with the proxy stopped."),
            Self::Template => refused(
                "a template database can't be written through synapsedb: it is not replicated",
                "Connect to another database; make databases from template0, or from template1 as it is.",
            ),
            Self::FunctionCall => refused(
                "function call messages are not supported through synapsedb",
                "Call the function with SELECT.",
            ),
        }
    }
}

fn node_report(words: &NodeWords) -> Report {
    let owned = |text: &Option<String>| text.clone().map(Cow::Owned);
    Report {
        severity: Severity::Error,
        sqlstate: Cow::Owned(words.sqlstate.clone()),
        message: Cow::Owned(words.message.clone()),
        detail: owned(&words.detail),
        hint: owned(&words.hint),
        blame: Blame::Node,
        retry: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every variant with its severity, code, blame and advice: a change here is a change for clients.
    #[test]
    fn golden_table() {
        use Blame::{Client, Node, Proxy};
        use ClientError as E;
        use Severity::{Error, Fatal};
        let name = || "x".to_owned();
        let words = NodeWords {
            sqlstate: "3D000".into(),
            message: "m".into(),
            detail: None,
            hint: None,
        };
        #[rustfmt::skip]
        let table = [
            (E::TooManyClients, Fatal, "53300", Proxy, true),
            (E::PoolTimeout { waited: Duration::from_secs(1), max_connections: 4 }, Error, "53300", Proxy, true),
            (E::QueueFull { queue_max: 1 }, Error, "53300", Proxy, true),
            (E::ShuttingDown, Fatal, "57P01", Proxy, true),
            (E::NoKey { user: name() }, Fatal, "57P01", Client, false),
            (E::OtherRole { user: name() }, Fatal, "57P01", Client, false),
            (E::AuthenticationFailed { user: name() }, Fatal, "28P01", Client, false),
            (E::ChannelBinding, Fatal, "28000", Client, false),
            (E::NoUser, Fatal, "28000", Client, false),
            (E::HandshakeTimeout, Fatal, "57014", Client, false),
            (E::protocol("p"), Fatal, "08P01", Client, false),
            (E::UnsupportedProtocol { major: 2, minor: 0 }, Fatal, "0A000", Client, false),
            (E::StartupOptions { switch: name() }, Fatal, "42601", Client, false),
            (E::Encoding, Fatal, "22021", Client, false),
            (E::Refused(Refusal::Replication), Error, "0A000", Client, false),
            (E::Refused(Refusal::TwoPhase), Error, "0A000", Client, false),
            (E::Refused(Refusal::Subscription), Error, "0A000", Client, false),
            (E::Refused(Refusal::LargeObjects), Error, "0A000", Client, false),
            (E::Refused(Refusal::ExplainMakesTable), Error, "0A000", Client, false),
            (E::Refused(Refusal::MixedQuery), Error, "0A000", Client, false),
            (E::Refused(Refusal::BehindDdl), Error, "0A000", Client, false),
            (E::Refused(Refusal::OddPassword), Error, "0A000", Client, false),
            (E::Refused(Refusal::FunctionCall), Error, "0A000", Client, false),
            (E::ReadOnlyPort { command: "INSERT".into() }, Error, "25006", Client, false),
            (E::NoQuorum { in_sync: 1, total: 3 }, Error, "25006", Node, true),
            (E::NodeUnreachable { node: name() }, Error, "57P03", Node, true),
            (E::NodeFault { node: name(), fault: name() }, Error, "08001", Node, false),
            (E::NoWriter { waited: Duration::from_secs(1) }, Error, "57P03", Node, true),
            (E::Held { what: "a temporary table" }, Fatal, "57P01", Node, true),
            (E::TransactionLost, Error, "40001", Node, true),
            (E::CommitUnknown, Error, "08007", Node, false),
            (E::AnswerLost, Error, "08007", Node, false),
            (E::ReadBroken, Error, "40001", Node, true),
            (E::NotHere, Error, "40001", Proxy, true),
            (E::BadConsistency { value: name() }, Error, "22023", Client, false),
            (E::Cancelled, Error, "57014", Client, false),
            (E::NoStatement { name: name() }, Error, "26000", Client, false),
            (E::StatementExists { name: name() }, Error, "42P05", Client, false),
            (E::NoPortal { name: name() }, Error, "34000", Client, false),
            (E::TransactionAborted, Error, "25P02", Client, false),
            (E::InTransaction { command: "VACUUM".into() }, Error, "25001", Client, false),
            (E::TooLarge { what: "a" }, Error, "54000", Client, false),
            (E::Node(Box::new(words)), Error, "3D000", Node, false),
            (E::Internal("i".into()), Fatal, "XX000", Proxy, false),
        ];
        for (error, severity, sqlstate, blame, retry) in table {
            let report = error.report();
            let got = (
                report.severity,
                &*report.sqlstate,
                report.blame,
                report.retry,
            );
            assert_eq!(got, (severity, sqlstate, blame, retry), "{error:?}");
            assert!(
                !report.message.is_empty() && !report.message.ends_with('.'),
                "{error:?}"
            );
            for sentence in report.detail.iter().chain(&report.hint) {
                assert!(sentence.ends_with('.'), "{error:?}: {sentence}");
            }
        }
    }

    #[test]
    fn texts_say_what_the_design_says() {
        let quorum = ClientError::NoQuorum {
            in_sync: 1,
            total: 3,
        }
        .report();
        assert_eq!(quorum.message, "write quorum lost: 1 of 3 nodes in sync");
        let many = ClientError::TooManyClients.report();
        assert_eq!(many.message, "sorry, too many clients already");
    }
}

//! A session's side of commands that no event trigger sees: the call that logs them, and what follows once
//! the writer has run them. The plan itself is in `global_ddl.rs`.

use std::sync::Arc;

use bytes::Bytes;

use crate::cluster::service::Order;
use crate::error::{ClientError, Refusal};
use crate::session::brief::facts_of;
use crate::session::global_ddl::{self, After, Logged, Plan};
use crate::session::pipeline::{Entry, Expect, Own};
use crate::session::prepared::Statement;
use crate::session::relay::{End, Session};
use crate::session::requests::{Step, UNPARSABLE, text_of, words};
use crate::sql::statement::Facts;
use crate::wire::frame::{HEADER_BYTES, Header};
use crate::wire::message::frontend::{self, Target};
use crate::wire::message::report::{Report, Severity};
use crate::wire::scram::verifier::DEFAULT_ITERATIONS;
use crate::wire::scram::verifier::make_verifier;

/// Ahead of the call, in its transaction: an error's context shows nothing that is bound, and no log of statements or
/// plans comes to the client. Notes what there was before.
const HUSH: &str = "select pg_catalog.set_config('synapsedb.said', pg_catalog.current_setting(\
    'log_parameter_max_length_on_error'), true), pg_catalog.set_config('synapsedb.told', \
    pg_catalog.current_setting('client_min_messages'), true), \
    pg_catalog.set_config('log_parameter_max_length_on_error', '0', true), \
    pg_catalog.set_config('client_min_messages', 'error', true)";
/// Puts that back.
const UNHUSH: &str = "select pg_catalog.set_config('log_parameter_max_length_on_error', \
    pg_catalog.current_setting('synapsedb.said'), true), pg_catalog.set_config('client_min_messages', \
    pg_catalog.current_setting('synapsedb.told'), true)";
/// The call. Its settings are read where it is called, since the function has a `search_path` of its own.
const LOG_COMMAND: &str = "select synapsedb.log_command($1, $2, $3, pg_catalog.jsonb_build_object(\
    'search_path', pg_catalog.current_setting('search_path'), \
    'TimeZone', pg_catalog.current_setting('TimeZone'), \
    'DateStyle', pg_catalog.current_setting('DateStyle'), \
    'IntervalStyle', pg_catalog.current_setting('IntervalStyle'), \
    'check_function_bodies', pg_catalog.current_setting('check_function_bodies'), \
    'default_tablespace', pg_catalog.current_setting('default_tablespace'), \
    'default_table_access_method', pg_catalog.current_setting('default_table_access_method'), \
    'default_toast_compression', pg_catalog.current_setting('default_toast_compression'), \
    'standard_conforming_strings', pg_catalog.current_setting('standard_conforming_strings'), \
    'xmloption', pg_catalog.current_setting('xmloption'), \
    'lc_monetary', pg_catalog.current_setting('lc_monetary'), \
    'transform_null_equals', pg_catalog.current_setting('transform_null_equals')), null)";
/// Name of the call's statement and portal on a connection, gone again before the client's message.
const LOG_NAME: &str = "synapsedb_log";
/// The OID of type `text`.
const TEXT: u32 = 25;

/// What the server calls such a command.
fn command_tag(logged: &Logged) -> String {
    let (verb, what) = logged.tag.split_once(' ').unwrap_or((&logged.tag, ""));
    let mut words = logged.command.split_whitespace();
    match (verb, what) {
        ("GRANT" | "REVOKE", _) if words.any(|word| word.eq_ignore_ascii_case("on")) => verb.into(),
        ("GRANT" | "REVOKE", _) | (_, "USER" | "GROUP") => format!("{verb} ROLE"),
        ("COMMENT", _) => verb.into(),
        _ => logged.tag.clone(),
    }
}

impl Session {
    fn plan(&self, text: &[u8], facts: &Facts) -> Result<Plan, Refusal> {
        let standard = self.state.wanted.get("standard_conforming_strings");
        let standard = standard.is_none_or(|value| value == "on");
        let verifier = |password: &str| {
            let salt: [u8; 16] = rand::random();
            make_verifier(password.as_bytes(), &salt, DEFAULT_ITERATIONS).ok()
        };
        match std::str::from_utf8(text) {
            Ok(text) => global_ddl::plan(text, facts, standard, verifier),
            Err(_) => Ok(Plan::default()),
        }
    }

    /// The tail of a Parse with its passwords hidden, where there are any.
    pub(super) fn hide_passwords(
        &self,
        tail: &[u8],
        facts: &Facts,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let text = text_of(tail);
        let plan = self.plan(text, facts)?;
        Ok(plan
            .text
            .map(|new| [new.as_bytes(), &tail[text.len()..]].concat()))
    }

    /// A Query with such commands.
    pub(super) async fn unseen_query(
        &mut self,
        header: Header,
        facts: &Facts,
        mut entry: Entry,
    ) -> Result<Step, End> {
        let plan = self.plan(text_of(&self.input[HEADER_BYTES..header.len]), facts);
        let plan = match plan {
            Ok(plan) => self.prepare(plan, &mut entry).await,
            Err(refusal) => Err(ClientError::Refused(refusal)),
        };
        self.barrier = true;
        match plan {
            Err(error @ ClientError::OtherRole { .. }) => return Err(End::Error(error)),
            Err(error) => {
                entry.words = Some(words(&error));
                self.pipeline.push(entry);
                self.pass(header, false);
                let _ = frontend::query(&mut self.to_server, UNPARSABLE);
            }
            Ok(Some(text)) => {
                self.pipeline.push(entry);
                self.pass(header, false);
                let _ = frontend::query(&mut self.to_server, &text);
            }
            Ok(None) => {
                self.pipeline.push(entry);
                self.pass(header, true);
            }
        }
        Ok(Step::Next)
    }

    /// A portal was bound; whether its statement is one of these is known at its Execute.
    pub(super) fn note_portal(&mut self, portal: Option<Bytes>, statement: Option<Arc<Statement>>) {
        if let (Some(portal), Some(statement)) = (portal, statement) {
            self.portals.insert(portal, statement);
        }
    }

    /// An Execute of such a command.
    pub(super) async fn unseen_execute(&mut self, statement: &Arc<Statement>, entry: &mut Entry) {
        let Some(facts) = &statement.brief.special else {
            return;
        };
        // The statement's facts are of the text before its passwords were hidden.
        let text = text_of(&statement.tail);
        let facts = match std::str::from_utf8(text) {
            Ok(text) => facts_of(text, true),
            Err(_) => facts.as_ref().clone(),
        };
        if let Ok(plan) = self.plan(text, &facts)
            && let Err(error) = self.prepare(plan, entry).await
        {
            entry.words = Some(words(&error));
        }
    }

    /// Puts the calls that log ahead of the command, and notes what follows it. Gives the text to be sent.
    async fn prepare(
        &mut self,
        plan: Plan,
        entry: &mut Entry,
    ) -> Result<Option<String>, ClientError> {
        let shared = Arc::clone(&self.shared);
        let service = shared.relay.service();
        if plan.after.is_some() && !self.is_same_role() {
            // The other nodes would run it as whoever has the name now.
            return Err(self.other_role());
        }
        if let Some(secret) = service.log_secret() {
            for logged in &plan.logged {
                self.put_log(secret, logged);
            }
        }
        if let Some(template) = &plan.template {
            if service.replicates(template) {
                return Err(ClientError::Refused(Refusal::HeldDatabase));
            }
            shared.pools.close_database(template);
        }
        if let Some(After::Elsewhere {
            drops: Some(name), ..
        }) = &plan.after
        {
            shared.pools.close_database(name);
            service.before_drop(name).await?;
        }
        entry.after = plan.after;
        Ok(plan.text)
    }

    /// Before the secret is bound the node is told to be silent of it; whatever it says nevertheless stays here (see
    /// `answers.rs`).
    fn put_log(&mut self, secret: &str, logged: &Logged) {
        let command: Arc<str> = Arc::from(command_tag(logged));
        self.put_call(HUSH, &[], &command);
        self.put_call(
            LOG_COMMAND,
            &[secret, &logged.tag, &logged.command],
            &command,
        );
        self.put_call(UNHUSH, &[], &command);
    }

    fn put_call(&mut self, sql: &str, values: &[&str], command: &Arc<str>) {
        let out = &mut self.to_server;
        let types = vec![TEXT; values.len()];
        let values = values.iter().map(|value| Some(value.as_bytes()));
        // These texts came in one frame each, or are our own, so they fit; none holds a zero byte.
        let _ = frontend::close(out, Target::Statement, LOG_NAME);
        let _ = frontend::parse(out, LOG_NAME, sql, &types);
        let _ = frontend::bind(out, LOG_NAME, LOG_NAME, &[], values, &[]);
        let _ = frontend::execute(out, LOG_NAME, 0);
        let _ = frontend::close(out, Target::Portal, LOG_NAME);
        let _ = frontend::close(out, Target::Statement, LOG_NAME);
        let (parse, bind, execute, close) =
            (Expect::Parse, Expect::Bind, Expect::Execute, Expect::Close);
        for expect in [close, parse, bind, execute, close, close] {
            let mut entry = Entry::own(expect, Own::Step);
            entry.logs = Some(Arc::clone(command));
            self.pipeline.push(entry);
        }
    }

    /// The writer has run a command: sees to the other nodes, and tells the client which did it.
    pub(super) async fn follow_up(&mut self, after: After) {
        let shared = Arc::clone(&self.shared);
        let service = shared.relay.service();
        let named = |name: &str| self.state.wanted.get(name).cloned();
        let role = named("role").or_else(|| named("session_authorization"));
        let order = Order {
            database: self.database.clone(),
            role: role.unwrap_or_else(|| self.user.clone()),
            search_path: named("search_path"),
            ..Order::default()
        };
        match after {
            After::Upkeep(commands) => {
                for command in commands {
                    service.upkeep_elsewhere(Order {
                        command,
                        ..order.clone()
                    });
                }
            }
            After::Elsewhere {
                command,
                makes,
                drops,
            } => {
                let order = Order {
                    command,
                    makes,
                    drops,
                    ..order
                };
                let outcome = service.run_elsewhere(&order).await;
                if outcome.undone {
                    self.tell_undone(&outcome.nodes);
                } else {
                    self.tell_outcome(&outcome.nodes);
                }
            }
        }
    }

    /// The writer's `CommandComplete` is not for the client: it gets an error in its place.
    fn tell_undone(&mut self, nodes: &[(String, Option<String>)]) {
        let said = nodes.iter().filter_map(|(name, error)| {
            let error = error.as_ref()?;
            Some(format!("{name}: {error}"))
        });
        let why = said.collect::<Vec<_>>().join("; ");
        self.to_client
            .extend_from_slice(&words(&ClientError::FailedElsewhere { why }));
        self.undone = true;
    }

    fn tell_outcome(&mut self, outcome: &[(String, Option<String>)]) {
        let list = |names: Vec<&String>| names.into_iter().cloned().collect::<Vec<_>>().join(", ");
        let did = list(
            outcome
                .iter()
                .filter(|(_, error)| error.is_none())
                .map(|(name, _)| name)
                .collect(),
        );
        if !did.is_empty() && self.state.shows(b"NOTICE") {
            let text = format!("the writer has run the command, and so have: {did}");
            Report::new(Severity::Notice, "00000", text).put_notice(&mut self.to_client);
        }
        for (name, error) in outcome {
            if let Some(error) = error.as_ref().filter(|_| self.state.shows(b"WARNING")) {
                let text =
                    format!("node \"{name}\" could not run the command and is fenced: {error}");
                Report::new(Severity::Warning, "01000", text).put_notice(&mut self.to_client);
            }
        }
    }
}

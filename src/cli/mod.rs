//! Commands of the program: serve, check, release, demo, version.
//!
//! One file a command; each takes a configuration and gives an exit code or a [`CliError`]. Nothing
//! below this floor prints, reads arguments or listens to signals.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::config::read::ConfigError;

pub mod check;
pub mod demo;
pub mod logs;
pub mod promote;
pub mod release;
pub mod serve;
pub mod threads;

/// What it says about itself: clap would print the backticks that a comment needs.
const ABOUT: &str = "One front door for plain PostgreSQL servers: any SQL, every write on a majority before it is \
                     acknowledged, all copies equal";

/// The arguments.
#[derive(Debug, Parser)]
#[command(name = "synapsedb", version, about = ABOUT, long_about = ABOUT)]
#[command(
    after_help = "Try it: synapsedb demo\nRUST_LOG chooses what is logged, e.g. RUST_LOG=synapsedb=debug"
)]
pub struct Cli {
    /// How log lines on stderr look.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        help_heading = "Everywhere"
    )]
    pub log_format: logs::LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy until Ctrl-C or SIGTERM.
    ///
    /// On first contact it sets the nodes up: a schema, a publication, slots, event triggers, a role
    /// and two settings. It restarts nothing.
    Serve(ConfigFile),
    /// Look at the configuration and the nodes; say what is wrong and how to mend it.
    ///
    /// Changes nothing. The exit code is 1 where something must be mended.
    Check(ConfigFile),
    /// Have a node become the writer, in order: no transaction is broken off for it.
    ///
    /// Asks the running proxy. The exit code is 1 where the node did not become the writer, and the text says why.
    Promote(promote::Arguments),
    /// Take everything of the proxy's off the nodes again.
    ///
    /// Stop the proxy first. A node left with the proxy's setting and no proxy waits at each commit.
    Release(release::Arguments),
    /// Start three servers on this machine with the proxy in front, and show how to use them.
    ///
    /// The data stays in .synapsedb/ for the next start. Ctrl-C stops everything.
    Demo(demo::Arguments),
    /// Print the version.
    Version,
}

/// Which configuration a command works with.
#[derive(Debug, Clone, Args)]
pub struct ConfigFile {
    /// The configuration; without it that of the demo running from this folder, else ./proxy.toml.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration is wrong.
    #[error("the configuration cannot be used:\n{0}")]
    Config(#[from] ConfigError),
    /// There is none.
    #[error(
        "no configuration: there is no ./proxy.toml and no demo runs from this folder; give one with --config FILE"
    )]
    NoConfig,
    /// The proxy could not start or had to end.
    #[error(transparent)]
    Serve(#[from] serve::ServeError),
    /// The demo could not start.
    #[error(transparent)]
    Demo(#[from] demo::DemoError),
    /// The proxy could not be asked.
    #[error(transparent)]
    Order(#[from] promote::OrderError),
    /// A node could not be released.
    #[error(transparent)]
    Release(#[from] release::ReleaseError),
}

impl Command {
    /// What is logged where `RUST_LOG` does not say.
    pub fn log_level(&self) -> &'static str {
        match self {
            Self::Serve(_) => "info",
            _ => "warn",
        }
    }
}

impl ConfigFile {
    /// Finds and reads it.
    pub fn load(&self) -> Result<Config, CliError> {
        Ok(Config::load(&self.find()?)?)
    }

    fn find(&self) -> Result<PathBuf, CliError> {
        if let Some(file) = &self.config {
            return Ok(file.clone());
        }
        let here = Path::new(".");
        if let Some(file) = demo::running_config(here) {
            return Ok(file);
        }
        let file = here.join("proxy.toml");
        if file.is_file() {
            return Ok(file);
        }
        Err(CliError::NoConfig)
    }
}

/// Carries out one command.
pub async fn run(cli: Cli) -> Result<ExitCode, CliError> {
    match cli.command {
        Command::Serve(file) => {
            let config = file.load()?;
            serve::run(config, stop_on_signal()).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check(file) => Ok(check::run(&file.load()?).await),
        Command::Promote(arguments) => {
            let config = arguments.file.load()?;
            Ok(promote::run(&config, &arguments).await?)
        }
        Command::Release(arguments) => {
            let config = arguments.file.load()?;
            Ok(release::run(&config, &arguments).await?)
        }
        Command::Demo(arguments) => {
            demo::run(&arguments, stop_on_signal()).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Version => {
            println!("synapsedb {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// A token that Ctrl-C or SIGTERM cancels. The second Ctrl-C ends the program on the spot.
fn stop_on_signal() -> CancellationToken {
    use tokio::signal::unix::{SignalKind, signal};
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        // Registering fails only where the process is out of file descriptors: then the system's own
        // way of ending it on a signal stays in force.
        let (Ok(mut interrupt), Ok(mut terminate)) = (
            signal(SignalKind::interrupt()),
            signal(SignalKind::terminate()),
        ) else {
            return;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.cancel();
        // One Ctrl-C may arrive twice: from the terminal and from a program around us.
        let _ = tokio::time::timeout(Duration::from_secs(1), async {
            loop {
                interrupt.recv().await;
            }
        })
        .await;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        eprintln!("stopped at once, as asked twice");
        std::process::exit(130);
    });
    token
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent_and_the_help_names_each_command() {
        Cli::command().debug_assert();
        let help = Cli::command().render_long_help().to_string();
        for command in ["serve", "check", "release", "demo", "version"] {
            assert!(help.contains(command), "{help}");
        }
    }
}

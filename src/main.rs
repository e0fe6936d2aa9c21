//! The program `synapsedb`: arguments in, exit code out. Everything else is in the library.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use synapsedb::cli::threads::half_of_the_cores;
use synapsedb::cli::{Cli, logs, run};

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    logs::start(cli.log_format, cli.command.log_level());
    let runtime = half_of_the_cores("relay").context("starting the runtime")?;
    match runtime.block_on(run(cli)) {
        Ok(code) => Ok(code),
        Err(error) => {
            eprintln!("synapsedb: {error}");
            Ok(ExitCode::FAILURE)
        }
    }
}

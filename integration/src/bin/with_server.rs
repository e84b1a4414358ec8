//! `with_server etcd COMMAND…` starts a server, runs the command with `{url}` replaced by the
//! server's URL, and exits with the command's status. Programs that are not tests can run on a real
//! server this way.

use std::process::{Command, ExitCode};

use leasehold_integration::{
    HarnessError, Result,
    server::{EtcdCluster, PostgresServer, RedisServer, ZookeeperServer},
};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(server), command) = (arguments.next(), arguments.collect::<Vec<_>>()) else {
        eprintln!("with_server SERVER COMMAND…");
        return ExitCode::from(2);
    };
    match run(&server, &command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("with_server: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(server: &str, command: &[String]) -> Result<ExitCode> {
    match server {
        "etcd" => {
            let server = EtcdCluster::start()?;
            run_at(&server.url(), command)
        }
        "redis" => {
            let server = RedisServer::start()?;
            run_at(&server.url(), command)
        }
        "postgres" => {
            let server = PostgresServer::start()?;
            run_at(&server.url(), command)
        }
        "zookeeper" => {
            let server = ZookeeperServer::start()?;
            run_at(&server.url(), command)
        }
        _ => Err(HarnessError::new(format!(
            "{server:?} must be one of etcd, postgres, redis, zookeeper"
        ))),
    }
}

fn run_at(url: &str, command: &[String]) -> Result<ExitCode> {
    let mut words = command.iter().map(|word| word.replace("{url}", url));
    let program = words
        .next()
        .ok_or_else(|| HarnessError::new("the command is missing"))?;
    let status = Command::new(&program)
        .args(words)
        .status()
        .map_err(|error| HarnessError::caused_by(format!("cannot run {program}"), error))?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}

use std::env;
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::data::new_cluster;
use super::programs::{command, give_to_owner, program, run, unprivileged};
use super::server::PostgresServer;
use crate::certificates::Certificates;
use crate::server::Process;
use crate::server::free_port;
use crate::{HarnessError, Result};

/// A server takes some 50 MB, and several run at a time.
const MEMORY_WANTED: u64 = 2 << 30;

/// A picked port can be taken by another test before the server has it.
const PORTS_TRIED: usize = 5;

/// Small and quick rather than fast: many run at a time. What a test sets comes later and wins.
const SETTINGS: [(&str, &str); 9] = [
    ("listen_addresses", "127.0.0.1"),
    // A crash of the server loses nothing by it, only one of the machine.
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("shared_buffers", "16MB"),
    ("max_wal_size", "32MB"),
    ("min_wal_size", "4MB"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("log_line_prefix", "%m [%p] %a "),
];

/// How a [`PostgresServer`] is to be.
#[derive(Debug, Clone, Default)]
#[must_use = "nothing is started until `start`"]
pub struct PostgresBuilder {
    settings: Vec<(String, String)>,
    access: Vec<String>,
    tls: Option<fn(&Path) -> Result<Certificates>>,
    on_disk: bool,
}

impl PostgresBuilder {
    /// A setting of postgresql.conf.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What it confirms is durable, as in production. A kill of the server needs no disk for that,
    /// only one of the machine.
    pub fn durable(self) -> Self {
        self.setting("fsync", "on")
            .setting("full_page_writes", "on")
    }

    /// Where temporary files are, even if there is room in memory: for measurements that are to
    /// wait for a disk.
    pub fn on_disk(mut self) -> Self {
        self.on_disk = true;
        self
    }

    /// A line of pg_hba.conf that comes before the one that trusts everybody on the loopback
    /// address, such as `host all shop 127.0.0.1/32 scram-sha-256`.
    pub fn access(mut self, line: &str) -> Self {
        self.access.push(line.to_owned());
        self
    }

    /// Speaks TLS on its port, and only that, with a certificate of
    /// [`PostgresServer::certificates`].
    pub fn tls(self) -> Self {
        self.tls_with(Certificates::generate)
    }

    /// The same with the certificate that `generate` writes into the folder that it is given.
    pub fn tls_with(mut self, generate: fn(&Path) -> Result<Certificates>) -> Self {
        self.tls = Some(generate);
        self
    }

    /// Starts it, and returns once it answers.
    ///
    /// # Errors
    /// PostgreSQL is not installed (`integration/setup.sh` installs it), or it does not start; the
    /// error shows its log.
    pub fn start(self) -> Result<PostgresServer> {
        let process = self.process()?;
        new_cluster(&process.folder().join("data"))?;
        self.start_in(process)
    }

    /// The same as a standby of `primary`.
    pub(super) fn start_standby(self, primary: &PostgresServer) -> Result<PostgresServer> {
        let process = self.process()?;
        let mut backup = command("pg_basebackup", process.folder())?;
        backup.args([
            "-D",
            "data",
            "-U",
            "postgres",
            "-X",
            "stream",
            "-c",
            "fast",
            "--no-sync",
            "-R",
            "-h",
        ]);
        run(backup
            .arg(primary.folder())
            .args(["-p", &primary.port().to_string()]))?;
        self.start_in(process)
    }

    fn process(&self) -> Result<Process> {
        let parent = if self.on_disk {
            env::temp_dir()
        } else {
            quick_folder()
        };
        let mut process = Process::new_in(&parent, "postgres", program("postgres")?)?;
        process.run_as(unprivileged());
        give_to_owner(process.folder())?;
        Ok(process)
    }

    fn start_in(self, mut process: Process) -> Result<PostgresServer> {
        let certificates = self
            .tls
            .map(|generate| generate(process.folder()))
            .transpose()?;
        if let Some(certificates) = &certificates {
            // It refuses a key that others can read.
            fs::set_permissions(certificates.key(), Permissions::from_mode(0o600))
                .map_err(unwritten)?;
        }
        process.set_arguments(["-D", "data"]);
        let mut tries = 0;
        loop {
            let port = free_port()?;
            self.configure(process.folder(), port, certificates.as_ref())?;
            let mut server = PostgresServer::new(process, port, certificates.clone(), self.clone());
            tries += 1;
            match server.start_process() {
                Ok(()) => return Ok(server),
                Err(_)
                    if tries < PORTS_TRIED
                        && server.log_tail().contains("Address already in use") =>
                {
                    process = server.into_process();
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn configure(
        &self,
        folder: &Path,
        port: u16,
        certificates: Option<&Certificates>,
    ) -> Result<()> {
        let mut config = String::new();
        let mut line = |name: &str, value: &str| {
            writeln!(config, "{name} = '{}'", value.replace('\'', "''"))
                .expect("a String takes all");
        };
        for (name, value) in SETTINGS {
            line(name, value);
        }
        line("port", &port.to_string());
        line("unix_socket_directories", &folder.display().to_string());
        if let Some(certificates) = certificates {
            line("ssl", "on");
            line(
                "ssl_cert_file",
                &certificates.certificate().display().to_string(),
            );
            line("ssl_key_file", &certificates.key().display().to_string());
        }
        for (name, value) in &self.settings {
            line(name, value);
        }
        // The harness itself, and standbys, come over the socket.
        let mut access = vec!["local all all trust", "local replication all trust"];
        access.extend(self.access.iter().map(String::as_str));
        access.push(if self.tls.is_some() {
            "hostssl all all 127.0.0.1/32 trust"
        } else {
            "host all all 127.0.0.1/32 trust"
        });
        fs::write(folder.join("data/postgresql.conf"), config).map_err(unwritten)?;
        fs::write(folder.join("data/pg_hba.conf"), access.join("\n") + "\n").map_err(unwritten)?;
        give_to_owner(folder)
    }
}

/// In memory where there is room: a new database cluster is a thousand files, which some file
/// systems take a second to make and to remove again.
fn quick_folder() -> PathBuf {
    let has_room = |stat: rustix::fs::StatVfs| stat.f_bavail * stat.f_frsize >= MEMORY_WANTED;
    let memory = Path::new("/dev/shm");
    if rustix::fs::statvfs(memory).is_ok_and(has_room) {
        memory.to_owned()
    } else {
        env::temp_dir()
    }
}

fn unwritten(error: std::io::Error) -> HarnessError {
    HarnessError::caused_by("cannot write the server's configuration", error)
}

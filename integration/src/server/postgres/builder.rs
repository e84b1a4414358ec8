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

/// A server needs about 50 MB of memory for its files, and several run at a time.
const MEMORY_WANTED: u64 = 2 << 30;

/// Another test may take a chosen port before the server binds it.
const PORTS_TRIED: usize = 5;

/// Defaults for a server that starts quickly and is small, because many run at a time. Settings of
/// a test override them.
const SETTINGS: [(&str, &str); 9] = [
    ("listen_addresses", "127.0.0.1"),
    // Without it, only a crash of the machine loses data, not one of the server.
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("shared_buffers", "16MB"),
    ("max_wal_size", "32MB"),
    ("min_wal_size", "4MB"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("log_line_prefix", "%m [%p] %a "),
];

/// Options of a [`PostgresServer`].
#[derive(Debug, Clone, Default)]
#[must_use = "nothing is started until `start`"]
pub struct PostgresBuilder {
    settings: Vec<(String, String)>,
    access: Vec<String>,
    tls: Option<fn(&Path) -> Result<Certificates>>,
    on_disk: bool,
}

impl PostgresBuilder {
    /// Sets a setting of postgresql.conf.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Makes commits durable, as in production. Killing the server never needs this, because only a
    /// crash of the machine loses unsynced data.
    pub fn durable(self) -> Self {
        self.setting("fsync", "on")
            .setting("full_page_writes", "on")
    }

    /// Puts the data on disk even if memory has room, for measurements that include the disk.
    pub fn on_disk(mut self) -> Self {
        self.on_disk = true;
        self
    }

    /// Adds a line of pg_hba.conf before the one that trusts everybody on the loopback address,
    /// such as `host all shop 127.0.0.1/32 scram-sha-256`.
    pub fn access(mut self, line: &str) -> Self {
        self.access.push(line.to_owned());
        self
    }

    /// Accepts only TLS on the port, with a certificate of [`PostgresServer::certificates`].
    pub fn tls(self) -> Self {
        self.tls_with(Certificates::generate)
    }

    /// Accepts only TLS, with the certificate that `generate` writes to the given folder.
    pub fn tls_with(mut self, generate: fn(&Path) -> Result<Certificates>) -> Self {
        self.tls = Some(generate);
        self
    }

    /// Starts the server and returns once it answers.
    ///
    /// # Errors
    /// PostgreSQL is not installed (`integration/setup.sh` installs it), or it does not start; the
    /// error shows its log.
    pub fn start(self) -> Result<PostgresServer> {
        let process = self.process()?;
        new_cluster(&process.folder().join("data"))?;
        self.start_in(process)
    }

    /// Starts a standby of `primary`.
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
            // PostgreSQL rejects a key that others can read.
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
                .expect("writing to a String never fails");
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
        // The harness and standbys connect over the socket.
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

/// Returns a folder in memory if there is room: a new database cluster has a thousand files, and
/// some file systems take a second to create or remove them.
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

use std::{collections::BTreeMap, fmt::Write as _, fs, time::Duration};

use super::{ZookeeperEnsemble, ZookeeperServer, java};
use crate::{HarnessError, Result, certificates::Certificates, server::Process};

/// Options of a [`ZookeeperServer`], or of every member of a [`ZookeeperEnsemble`].
#[derive(Debug, Clone)]
#[must_use = "nothing is started until `start` or `start_members`"]
pub struct ZookeeperBuilder {
    pub(super) tls: bool,
    pub(super) links: bool,
    properties: Vec<String>,
    settings: BTreeMap<String, String>,
}

impl Default for ZookeeperBuilder {
    fn default() -> Self {
        let settings = [
            ("dataDir", "data"),
            ("clientPortAddress", "127.0.0.1"),
            ("admin.enableServer", "false"),
            ("4lw.commands.whitelist", "*"),
            ("maxClientCnxns", "0"),
            // Sessions end at a whole number of ticks, and their shortest timeout is two ticks.
            ("tickTime", "500"),
            ("minSessionTimeout", "1000"),
            // The same as with the default tick, and more than our default TTL.
            ("maxSessionTimeout", "40000"),
            ("initLimit", "20"),
            ("syncLimit", "4"),
            // Several servers share a few processors, and no test depends on snapshots.
            ("snapCount", "1000000"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            tls: false,
            links: false,
            properties: Vec::new(),
            settings: settings.into(),
        }
    }
}

impl ZookeeperBuilder {
    /// Adds or replaces a line of `zoo.cfg`.
    pub fn setting(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.settings.insert(name.to_owned(), value.to_string());
        self
    }

    /// Sets a Java system property, for options that `zoo.cfg` does not have.
    pub fn property(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.properties.push(format!("-D{name}={value}"));
        self
    }

    /// Sets the tick. The default is 500 ms.
    pub fn tick(self, tick: Duration) -> Self {
        self.setting("tickTime", tick.as_millis())
    }

    /// Sets the number of ticks after which a follower and its leader drop each other; the default
    /// is 4. With a higher number, a follower that is cut off serves its clients for longer.
    pub fn sync_limit(self, ticks: u32) -> Self {
        self.setting("syncLimit", ticks)
    }

    /// Accepts TLS on a second port, with a certificate of [`ZookeeperServer::certificates`].
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Puts a proxy between each member and every other's quorum port, for
    /// [`ZookeeperEnsemble::isolate`]. Votes do not pass through it: an isolated member may learn
    /// who leads, but can neither follow nor lead.
    pub fn links(mut self) -> Self {
        self.links = true;
        self
    }

    /// Starts one server and returns once it serves.
    ///
    /// # Errors
    /// `java` or a jar is not installed (`integration/setup.sh` installs them), or the server does
    /// not start; the error shows its log.
    pub fn start(&self) -> Result<ZookeeperServer> {
        super::server::start_single(self)
    }

    /// Starts an ensemble of `count` members and returns once all of them serve.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_members(&self, count: usize) -> Result<ZookeeperEnsemble> {
        super::ensemble::start_members(self, count)
    }

    /// Creates a server's folder; `own` are the lines of `zoo.cfg` that only this server has.
    pub(super) fn prepare(
        &self,
        main: &str,
        id: usize,
        own: &[(String, String)],
    ) -> Result<(Process, Option<Certificates>)> {
        let mut process = Process::new("zookeeper", "java")?;
        let folder = process.folder().to_owned();
        let failed = |error| HarnessError::caused_by("cannot write ZooKeeper's files", error);
        let mut lines: BTreeMap<_, _> = self.settings.clone();
        lines.extend(own.iter().cloned());
        let certificates = if self.tls {
            Some(Certificates::generate(&folder)?)
        } else {
            None
        };
        if let Some(certificates) = &certificates {
            // ZooKeeper expects the key and the certificate in one PEM file.
            let read = |path| fs::read_to_string(path).map_err(failed);
            let both = read(certificates.key())? + &read(certificates.certificate())?;
            fs::write(folder.join("both.pem"), both).map_err(failed)?;
            let factory = "org.apache.zookeeper.server.NettyServerCnxnFactory".to_owned();
            lines.insert("serverCnxnFactory".to_owned(), factory);
            lines
                .entry("ssl.clientAuth".to_owned())
                .or_insert_with(|| "none".to_owned());
            for (name, file) in [
                ("ssl.keyStore.location", "both.pem"),
                ("ssl.trustStore.location", "ca.pem"),
            ] {
                lines.insert(name.to_owned(), folder.join(file).display().to_string());
            }
        }
        let mut config = String::new();
        for (name, value) in &lines {
            writeln!(config, "{name}={value}").expect("writing to a String never fails");
        }
        fs::create_dir(folder.join("data")).map_err(failed)?;
        fs::write(folder.join("data/myid"), id.to_string()).map_err(failed)?;
        fs::write(folder.join("zoo.cfg"), config).map_err(failed)?;
        process.set_arguments(
            self.properties
                .iter()
                .cloned()
                .chain(java::server_arguments(main)?),
        );
        Ok((process, certificates))
    }
}

use std::path::Path;

use crate::{HarnessError, Result, child::find_program};

/// Where Debian puts its jars.
pub const JARS: &str = "/usr/share/java";

/// What a server is made of. The manifest of the first one names most of what it needs, but not the
/// TLS of netty.
const SERVER: [&str; 3] = ["zookeeper", "netty-codec", "slf4j-simple"];

/// The main class of a server on its own.
pub(super) const SINGLE: &str = "org.apache.zookeeper.server.ZooKeeperServerMain";

/// The main class of a member of an ensemble.
pub(super) const MEMBER: &str = "org.apache.zookeeper.server.quorum.QuorumPeerMain";

/// Java programs here are small and live for seconds: the time that they take to start is what
/// counts.
#[must_use]
pub fn jvm() -> [&'static str; 4] {
    [
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        "-XX:-UsePerfData",
        "-Xmx128m",
    ]
}

/// The class path of these jars of Debian's.
///
/// # Errors
/// One of them, or `java` itself, is not installed; the error names `integration/setup.sh`, which
/// installs it.
pub fn classpath(jars: &[&str]) -> Result<String> {
    find_program("java")?;
    let path = |jar: &&str| {
        let path = format!("{JARS}/{jar}.jar");
        let there = Path::new(&path).is_file();
        let missing =
            || HarnessError::new(format!("{path} is not installed: run integration/setup.sh"));
        there.then(|| path.clone()).ok_or_else(missing)
    };
    Ok(jars.iter().map(path).collect::<Result<Vec<_>>>()?.join(":"))
}

/// The arguments of `java` that run a server with `zoo.cfg` in its folder.
pub(super) fn server_arguments(main: &str) -> Result<Vec<String>> {
    let mut arguments: Vec<_> = jvm().iter().map(|&option| option.to_owned()).collect();
    // Without it every transaction waits for the disk, and nothing here is about a loss of power.
    arguments.push("-Dzookeeper.forceSync=no".to_owned());
    arguments.push("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn".to_owned());
    arguments.extend([
        "-cp".to_owned(),
        classpath(&SERVER)?,
        main.to_owned(),
        "zoo.cfg".to_owned(),
    ]);
    Ok(arguments)
}

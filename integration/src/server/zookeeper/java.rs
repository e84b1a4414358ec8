use std::path::Path;

use crate::{HarnessError, Result, child::find_program};

/// The folder with Debian's jars.
pub const JARS: &str = "/usr/share/java";

/// The jars of a server. The manifest of the first one names most dependencies, but not netty's
/// TLS.
const SERVER: [&str; 3] = ["zookeeper", "netty-codec", "slf4j-simple"];

/// The main class of a standalone server.
pub(super) const SINGLE: &str = "org.apache.zookeeper.server.ZooKeeperServerMain";

/// The main class of a member of an ensemble.
pub(super) const MEMBER: &str = "org.apache.zookeeper.server.quorum.QuorumPeerMain";

/// Returns JVM options for small programs that run for seconds, so that the start-up time counts.
#[must_use]
pub fn jvm() -> [&'static str; 4] {
    [
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        "-XX:-UsePerfData",
        "-Xmx128m",
    ]
}

/// Returns the class path of these Debian jars.
///
/// # Errors
/// A jar, or `java` itself, is not installed. The error names `integration/setup.sh`, which
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

/// Returns the arguments of `java` for a server with `zoo.cfg` in its folder.
pub(super) fn server_arguments(main: &str) -> Result<Vec<String>> {
    let mut arguments: Vec<_> = jvm().iter().map(|&option| option.to_owned()).collect();
    // Otherwise every transaction waits for the disk, and no test is about a power failure.
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

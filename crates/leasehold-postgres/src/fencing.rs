//! The sequence that fencing tokens are drawn from.
//!
//! One for all locks of a database: so the tokens of each key grow.

use leasehold_core::{Error, ErrorKind, Result};
use sqlx::PgConnection;

use crate::{
    config::PostgresConfig,
    connection::Link,
    error::{self, DUPLICATE_OBJECT, INSUFFICIENT_PRIVILEGE, NO_SUCH_SCHEMA, has_code},
};

/// One row if the schema `$1` is there; what is said of the sequence `$2` is NULL if that is not.
const LOOK: &str = "SELECT has_schema_privilege(n.oid, 'USAGE'), c.relpersistence = 'p', \
     s.seqtypid = 'int8'::regtype AND s.seqincrement > 0 AND s.seqcache = 1 AND NOT s.seqcycle, \
     s.seqmin > 0, has_sequence_privilege(s.seqrelid, 'USAGE') \
     FROM pg_namespace AS n LEFT JOIN (pg_class AS c JOIN pg_sequence AS s ON s.seqrelid = c.oid) \
     ON c.relnamespace = n.oid AND c.relname = $2 WHERE n.nspname = $1";

/// What the server has of it.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    schema: bool,
    /// Whether the role may use what is in the schema.
    schema_usable: bool,
    sequence: Option<Sequence>,
}

#[derive(Clone, Copy, Debug)]
struct Sequence {
    /// Its values survive a crash.
    logged: bool,
    /// One value after the other, each larger, and enough of them.
    counts_up: bool,
    /// All values are above 0: a token is.
    positive: bool,
    usable: bool,
}

/// As it stands in SQL.
pub(crate) fn quoted(config: &PostgresConfig) -> Result<Option<String>> {
    if !config.fencing {
        return Ok(None);
    }
    let (schema, name) = config.sequence_parts()?;
    Ok(Some(format!("\"{schema}\".\"{name}\"")))
}

/// Returns whether it is there and open to the role, and changes nothing. Fails if it is unfit.
pub(crate) async fn is_ready(link: &Link, connection: &mut PgConnection) -> Result<bool> {
    let Some(quoted) = quoted(&link.config)? else {
        return Ok(true);
    };
    let found = look(link, connection).await?;
    let Some(sequence) = found.sequence else {
        return Ok(false);
    };
    sequence.check(&quoted)?;
    Ok(found.schema_usable && sequence.usable)
}

/// Makes sure that it is there, fit, and open to the role, before the first acquisition.
pub(crate) async fn ensure(link: &Link, connection: &mut PgConnection) -> Result<()> {
    let Some(quoted) = quoted(&link.config)? else {
        return Ok(());
    };
    let found = look(link, connection).await?;
    if found.sequence.is_some() {
        return check(link, connection, found, &quoted).await;
    }
    match link.write(connection, &create(&quoted), "COMMIT").await? {
        Ok(()) => {}
        // Somebody else made it at the same time.
        Err(error) if DUPLICATE_OBJECT.iter().any(|code| has_code(&error, code)) => {}
        Err(error)
            if has_code(&error, INSUFFICIENT_PRIVILEGE) || has_code(&error, NO_SUCH_SCHEMA) =>
        {
            return Err(denied(link, connection, found, &quoted)
                .await?
                .with_source(error));
        }
        Err(error) => return Err(link.failed(error, "acquire")),
    }
    let found = look(link, connection).await?;
    check(link, connection, found, &quoted).await
}

async fn look(link: &Link, connection: &mut PgConnection) -> Result<Found> {
    let (schema, name) = link.config.sequence_parts()?;
    let looked = sqlx::query(LOOK)
        .bind(schema)
        .bind(name)
        .fetch_optional(connection);
    let Some(row) = link
        .within(looked)
        .await?
        .map_err(|error| link.failed(error, "connect"))?
    else {
        return Ok(Found::default());
    };
    let says = |column: usize| link.read::<Option<bool>, _>(&row, column);
    let sequence = match (says(1)?, says(2)?, says(3)?, says(4)?) {
        (Some(logged), Some(counts_up), Some(positive), Some(usable)) => Some(Sequence {
            logged,
            counts_up,
            positive,
            usable,
        }),
        _ => None,
    };
    Ok(Found {
        schema: true,
        schema_usable: link.read(&row, 0)?,
        sequence,
    })
}

async fn check(
    link: &Link,
    connection: &mut PgConnection,
    found: Found,
    quoted: &str,
) -> Result<()> {
    let sequence = found.sequence.ok_or_else(|| error::protocol("acquire"))?;
    sequence.check(quoted)?;
    if found.schema_usable && sequence.usable {
        return Ok(());
    }
    Err(denied(link, connection, found, quoted).await?)
}

impl Sequence {
    /// Fails unless it is fit.
    fn check(self, quoted: &str) -> Result<()> {
        let Some(run) = self.repair(quoted) else {
            return Ok(());
        };
        Err(error::plain(
            ErrorKind::Unsupported,
            "connect",
            format!(
                "the sequence {quoted} may give tokens that fall, or none above 0: it must be logged, of type bigint, \
                 count up from above 0, not cycle and cache 1; as its owner run: {run}"
            ),
        ))
    }

    /// The SQL that makes it fit, unless it is. It goes on counting from where it is, if that is
    /// above 0.
    fn repair(self, quoted: &str) -> Option<String> {
        let mut run = Vec::new();
        if !self.logged {
            run.push(format!("ALTER SEQUENCE {quoted} SET LOGGED"));
        }
        if !self.positive {
            // For now the least that there is: `MINVALUE 1` is refused while the sequence stands
            // below, and a new type brings a minimum of its own.
            let min = i64::MIN;
            run.extend([
                format!("ALTER SEQUENCE {quoted} AS bigint INCREMENT 1 MINVALUE {min} NO MAXVALUE NO CYCLE CACHE 1"),
                format!(
                    "SELECT setval('{quoted}', greatest(last_value, 1), is_called AND last_value > 0) FROM {quoted}"
                ),
                format!("ALTER SEQUENCE {quoted} MINVALUE 1 START 1"),
            ]);
        } else if !self.counts_up {
            run.push(format!(
                "ALTER SEQUENCE {quoted} AS bigint INCREMENT 1 NO MAXVALUE NO CYCLE CACHE 1"
            ));
        }
        (!run.is_empty()).then(|| run.join("; "))
    }
}

fn create(quoted: &str) -> String {
    format!("CREATE SEQUENCE IF NOT EXISTS {quoted}")
}

/// Names what is missing to what was found.
async fn denied(
    link: &Link,
    connection: &mut PgConnection,
    found: Found,
    quoted: &str,
) -> Result<Error> {
    let failed = |error| link.failed(error, "acquire");
    // Credentials that are supplied may be of another role than the options name.
    let asked = sqlx::query("SELECT session_user::text").fetch_one(connection);
    let role: String = link.read(&link.within(asked).await?.map_err(failed)?, 0)?;
    let (schema, _) = link.config.sequence_parts()?;
    let run = missing(found, schema, quoted, &role);
    let message = format!(
        "the fencing tokens need a sequence that the role `{role}` may use; as its owner, or the database's, run: {run}; \
         or switch tokens off with fencing=off"
    );
    Ok(error::plain(ErrorKind::Denied, "acquire", message))
}

/// The SQL after which the role may draw tokens.
fn missing(found: Found, schema: &str, quoted: &str, role: &str) -> String {
    let role = role.replace('"', "\"\"");
    let mut run = Vec::new();
    if !found.schema {
        run.push(format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\""));
    }
    if found.sequence.is_none() {
        run.push(create(quoted));
    }
    if !found.schema_usable {
        run.push(format!("GRANT USAGE ON SCHEMA \"{schema}\" TO \"{role}\""));
    }
    if found.sequence.is_none_or(|sequence| !sequence.usable) {
        run.push(format!("GRANT USAGE ON SEQUENCE {quoted} TO \"{role}\""));
    }
    run.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIT: Sequence = Sequence {
        logged: true,
        counts_up: true,
        positive: true,
        usable: true,
    };

    fn missing_to(found: Found) -> String {
        missing(found, "s", "\"s\".\"t\"", "a\"b")
    }

    #[test]
    fn only_what_is_missing_is_told() {
        let nothing = Found::default();
        let sql = "CREATE SCHEMA IF NOT EXISTS \"s\"; CREATE SEQUENCE IF NOT EXISTS \"s\".\"t\"; \
                   GRANT USAGE ON SCHEMA \"s\" TO \"a\"\"b\"; GRANT USAGE ON SEQUENCE \"s\".\"t\" TO \"a\"\"b\"";
        assert_eq!(missing_to(nothing), sql);
        let schema = Found {
            schema: true,
            schema_usable: true,
            sequence: None,
        };
        let sql = "CREATE SEQUENCE IF NOT EXISTS \"s\".\"t\"; GRANT USAGE ON SEQUENCE \"s\".\"t\" TO \"a\"\"b\"";
        assert_eq!(missing_to(schema), sql);
        let shut = Found {
            schema: true,
            schema_usable: false,
            sequence: Some(FIT),
        };
        assert_eq!(
            missing_to(shut),
            "GRANT USAGE ON SCHEMA \"s\" TO \"a\"\"b\""
        );
    }

    #[test]
    fn what_is_fit_needs_no_repair() {
        assert_eq!(FIT.repair("q"), None);
        let unlogged = Sequence {
            logged: false,
            ..FIT
        };
        assert_eq!(
            unlogged.repair("q").as_deref(),
            Some("ALTER SEQUENCE q SET LOGGED")
        );
        // Where it stands must not change.
        let cycles = Sequence {
            counts_up: false,
            ..FIT
        };
        assert!(
            cycles
                .repair("q")
                .is_some_and(|sql| !sql.contains("setval") && !sql.contains("START"))
        );
    }
}

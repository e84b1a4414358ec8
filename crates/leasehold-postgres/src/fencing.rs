//! The sequence of the fencing tokens.
//!
//! All locks of a database share one sequence, so the tokens of each key grow.

use leasehold_core::{Error, ErrorKind, Result};
use sqlx::PgConnection;

use crate::{connection::Connector, error::ERRORS};

/// Reads the schema `$1` and the sequence `$2`. Returns one row if the schema exists: whether the
/// role may use the schema; whether the sequence is logged, counts up and is positive, and whether
/// the role may use it. The columns of the sequence are NULL if it does not exist.
const READ_SEQUENCE: &str = "SELECT has_schema_privilege(n.oid, 'USAGE'), c.relpersistence = 'p', \
     s.seqtypid = 'int8'::regtype AND s.seqincrement > 0 AND s.seqcache = 1 AND NOT s.seqcycle, \
     s.seqmin > 0, has_sequence_privilege(s.seqrelid, 'USAGE') \
     FROM pg_namespace AS n LEFT JOIN (pg_class AS c JOIN pg_sequence AS s ON s.seqrelid = c.oid) \
     ON c.relnamespace = n.oid AND c.relname = $2 WHERE n.nspname = $1";

/// The schema and the sequence, as far as they exist.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    schema: bool,
    /// Whether the role may use the schema.
    schema_usable: bool,
    sequence: Option<Sequence>,
}

#[derive(Clone, Copy, Debug)]
struct Sequence {
    /// Whether its values survive a crash.
    logged: bool,
    /// Whether it counts up one by one and never cycles.
    counts_up: bool,
    /// Whether all values are above 0, as tokens are.
    positive: bool,
    usable: bool,
}

/// Returns whether the sequence exists and is open to the role. Changes nothing. Fails if tokens of
/// this sequence could fall.
pub(crate) async fn is_ready(connector: &Connector, connection: &mut PgConnection) -> Result<bool> {
    let Some(quoted) = connector.config.quoted_sequence()? else {
        return Ok(true);
    };
    let found = read_sequence(connector, connection).await?;
    let Some(sequence) = found.sequence else {
        return Ok(false);
    };
    sequence.check(&quoted)?;
    Ok(found.schema_usable && sequence.usable)
}

/// Creates the sequence if it is missing, and checks it, before the first acquisition.
pub(crate) async fn ensure(connector: &Connector, connection: &mut PgConnection) -> Result<()> {
    let Some(quoted) = connector.config.quoted_sequence()? else {
        return Ok(());
    };
    let found = read_sequence(connector, connection).await?;
    if found.sequence.is_some() {
        return check(connector, connection, found, &quoted).await;
    }
    let created = connector
        .create(connection, &create(&quoted), "acquire")
        .await?;
    if let Err(error) = created {
        return Err(denied(connector, connection, found, &quoted)
            .await?
            .with_source(error));
    }
    let found = read_sequence(connector, connection).await?;
    check(connector, connection, found, &quoted).await
}

/// Reads the sequence and its schema.
async fn read_sequence(connector: &Connector, connection: &mut PgConnection) -> Result<Found> {
    let (schema, name) = connector.config.sequence_parts()?;
    let query = sqlx::query(READ_SEQUENCE)
        .bind(schema)
        .bind(name)
        .fetch_optional(connection);
    let Some(row) = connector
        .within(query)
        .await?
        .map_err(|error| connector.map_error(error, "connect"))?
    else {
        return Ok(Found::default());
    };
    let says = |column: usize| connector.read::<Option<bool>, _>(&row, column);
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
        schema_usable: connector.read(&row, 0)?,
        sequence,
    })
}

/// Fails if the sequence cannot be used, or not by this role.
async fn check(
    connector: &Connector,
    connection: &mut PgConnection,
    found: Found,
    quoted: &str,
) -> Result<()> {
    let sequence = found.sequence.ok_or_else(|| ERRORS.unexpected("acquire"))?;
    sequence.check(quoted)?;
    if found.schema_usable && sequence.usable {
        return Ok(());
    }
    Err(denied(connector, connection, found, quoted).await?)
}

impl Sequence {
    /// Fails if tokens of this sequence could fall.
    fn check(self, quoted: &str) -> Result<()> {
        let Some(run) = self.repair(quoted) else {
            return Ok(());
        };
        Err(ERRORS.error(
            ErrorKind::Unsupported,
            "connect",
            format!(
                "tokens of the sequence {quoted} could fall or be 0: it must be logged, of type bigint, count up from \
                 above 0, not cycle, and cache 1; run as its owner: {run}"
            ),
        ))
    }

    /// Returns the SQL that repairs the sequence, or `None` if it needs no repair. The sequence
    /// continues from its current value if that is above 0.
    fn repair(self, quoted: &str) -> Option<String> {
        let mut run = Vec::new();
        if !self.logged {
            run.push(format!("ALTER SEQUENCE {quoted} SET LOGGED"));
        }
        if !self.positive {
            // First the smallest minimum: the server refuses `MINVALUE 1` while the value is below
            // 1, and a new type has another default.
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

/// Returns the error that names the missing rights.
async fn denied(
    connector: &Connector,
    connection: &mut PgConnection,
    found: Found,
    quoted: &str,
) -> Result<Error> {
    let role = connector.role(connection, "acquire").await?;
    let (schema, _) = connector.config.sequence_parts()?;
    let run = missing(found, schema, quoted, &role);
    let message = format!(
        "fencing tokens need a sequence that the role `{role}` may use; run as the owner of the schema or the database: \
         {run}; or switch tokens off with fencing=off"
    );
    Ok(ERRORS.error(ErrorKind::Denied, "acquire", message))
}

/// Returns the SQL after which the role may draw tokens.
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
    fn denied_error_names_only_the_missing_rights() {
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
    fn valid_sequence_needs_no_repair() {
        assert_eq!(FIT.repair("q"), None);
        let unlogged = Sequence {
            logged: false,
            ..FIT
        };
        assert_eq!(
            unlogged.repair("q").as_deref(),
            Some("ALTER SEQUENCE q SET LOGGED")
        );
        // The current value must not change.
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

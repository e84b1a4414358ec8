//! The table of the records: its check, and its creation.

use std::sync::{Arc, atomic::Ordering};

use leasehold_core::{Error, ErrorKind, Result};
use sqlx::PgConnection;
use tokio::time::timeout;

use crate::{
    connection::Connector,
    error::{
        ERRORS, INSUFFICIENT_PRIVILEGE, LOCK_NOT_AVAILABLE, NO_SUCH_RELATION, NO_SUCH_SCHEMA,
        code_of,
    },
};

/// The name of the operation in errors.
pub(crate) const WRITE: &str = "write_record";

/// Reads the schema `$1` and the table `$2`. Returns one row if the schema exists: whether the role
/// may use the schema; whether the relation is a table, whether it is logged, and whether the role
/// may read and write it. The latter are NULL if it does not exist.
const READ_TABLE: &str = "SELECT has_schema_privilege(n.oid, 'USAGE'), c.relkind IN ('r', 'p'), \
     c.relpersistence = 'p', has_table_privilege(c.oid, 'SELECT') \
     AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE') \
     FROM pg_namespace AS n LEFT JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = $2 \
     WHERE n.nspname = $1";

/// The schema and the table, as far as they exist.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    schema: bool,
    /// Whether the role may use the schema.
    schema_usable: bool,
    table: Option<Table>,
}

#[derive(Clone, Copy, Debug)]
struct Table {
    is_table: bool,
    /// Whether its rows survive a crash.
    logged: bool,
    /// Whether the role may read and write it.
    usable: bool,
}

/// Creates the table if it is missing, and checks it, before the first write. Uses a connection of
/// its own, because a session that holds locks opens no transaction. First writes of many locks
/// take turns, so that they do not open a connection each.
pub(crate) async fn ensure(connector: &Arc<Connector>) -> Result<()> {
    let is_ready = || connector.records_ready.load(Ordering::Acquire);
    if is_ready() {
        return Ok(());
    }
    let limit = connector.config.timeout;
    let _turn = timeout(limit, connector.records_turn.lock())
        .await
        .map_err(|_elapsed| connector.timed_out(ErrorKind::Unavailable, WRITE, limit))?;
    if is_ready() {
        return Ok(());
    }
    connector
        .on_driver_thread(WRITE, |connector| async move {
            let mut connection = connector.connect("leasehold creates", WRITE).await?;
            let ensured = ensure_with(&connector, &mut connection).await;
            drop(connector.within(sqlx::Connection::close(connection)).await);
            ensured.map_err(|error| error.with_operation(WRITE))
        })
        .await?;
    connector.records_ready.store(true, Ordering::Release);
    Ok(())
}

async fn ensure_with(connector: &Connector, connection: &mut PgConnection) -> Result<()> {
    let quoted = &connector.records;
    let found = read_table(connector, connection).await?;
    if found.table.is_some() {
        return check(connector, connection, found).await;
    }
    let created = connector.create(connection, &create(quoted), WRITE).await?;
    if let Err(error) = created {
        return Err(denied(connector, connection, found)
            .await?
            .with_source(error));
    }
    let found = read_table(connector, connection).await?;
    check(connector, connection, found).await
}

async fn read_table(connector: &Connector, connection: &mut PgConnection) -> Result<Found> {
    let (schema, name) = connector.config.records_parts()?;
    let query = sqlx::query(READ_TABLE)
        .bind(schema)
        .bind(name)
        .fetch_optional(connection);
    let Some(row) = connector
        .within(query)
        .await?
        .map_err(|error| connector.map_error(error, WRITE))?
    else {
        return Ok(Found::default());
    };
    let says = |column: usize| connector.read::<Option<bool>, _>(&row, column);
    let table = match (says(1)?, says(2)?, says(3)?) {
        (Some(is_table), Some(logged), Some(usable)) => Some(Table {
            is_table,
            logged,
            usable,
        }),
        _ => None,
    };
    Ok(Found {
        schema: true,
        schema_usable: connector.read(&row, 0)?,
        table,
    })
}

/// Fails if the table cannot be used, or not by this role.
async fn check(connector: &Connector, connection: &mut PgConnection, found: Found) -> Result<()> {
    let quoted = &connector.records;
    let table = found.table.ok_or_else(|| ERRORS.unexpected(WRITE))?;
    if !table.is_table {
        return Err(foreign(quoted, WRITE));
    }
    if !table.logged {
        let message = format!(
            "the rows of {quoted} would not survive a crash, because the table is not logged; run as its owner: ALTER \
             TABLE {quoted} SET LOGGED"
        );
        return Err(ERRORS.error(ErrorKind::Unsupported, WRITE, message));
    }
    if found.schema_usable && table.usable {
        return Ok(());
    }
    Err(denied(connector, connection, found).await?)
}

fn create(quoted: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {quoted} (name bytea NOT NULL, lock_key text NOT NULL, \
         version int8 NOT NULL, sequence int8 NOT NULL, owner uuid NOT NULL, token int8, \
         label text NOT NULL, value bytea, written timestamptz NOT NULL, \
         PRIMARY KEY (name, lock_key))"
    )
}

/// Returns the error that names the missing rights.
async fn denied(
    connector: &Connector,
    connection: &mut PgConnection,
    found: Found,
) -> Result<Error> {
    let role = connector.role(connection, WRITE).await?;
    let (schema, _) = connector.config.records_parts()?;
    let run = missing(found, schema, &connector.records, &role);
    let message = format!(
        "records need a table that the role `{role}` may read and write; run as the owner of the schema or the database: \
         {run}"
    );
    Ok(ERRORS.error(ErrorKind::Denied, WRITE, message))
}

/// Returns the SQL after which the role may write records.
fn missing(found: Found, schema: &str, quoted: &str, role: &str) -> String {
    let role = role.replace('"', "\"\"");
    let mut run = Vec::new();
    if !found.schema {
        run.push(format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\""));
    }
    if found.table.is_none() {
        run.push(create(quoted));
    }
    if !found.schema_usable {
        run.push(format!("GRANT USAGE ON SCHEMA \"{schema}\" TO \"{role}\""));
    }
    if found.table.is_none_or(|table| !table.usable) {
        run.push(format!(
            "GRANT SELECT, INSERT, UPDATE ON TABLE {quoted} TO \"{role}\""
        ));
    }
    run.join("; ")
}

/// Returns the error of a relation that is not a table of records.
fn foreign(quoted: &str, operation: &'static str) -> Error {
    let message = format!(
        "{quoted} is not a table of records of Leasehold; rename it, or name another table with the option `records`"
    );
    ERRORS.error(ErrorKind::Conflict, operation, message)
}

/// Maps the server's error of a statement on the table, which had no effect.
pub(crate) fn failed(connector: &Connector, error: sqlx::Error, operation: &'static str) -> Error {
    let quoted = &connector.records;
    let code = code_of(&error).unwrap_or_default();
    let (kind, message) = match &*code {
        NO_SUCH_RELATION | NO_SUCH_SCHEMA => {
            // The next write creates it again.
            connector.records_ready.store(false, Ordering::Release);
            let message =
                format!("the table {quoted} of the records was dropped; repeat the write");
            (ErrorKind::Unavailable, message)
        }
        INSUFFICIENT_PRIVILEGE => {
            // The next write names what is missing.
            connector.records_ready.store(false, Ordering::Release);
            let message = format!(
                "this role has no right to the table {quoted} of the records; run as its owner: GRANT SELECT, INSERT, \
                 UPDATE ON TABLE {quoted} TO the role, and GRANT USAGE on its schema"
            );
            (ErrorKind::Denied, message)
        }
        LOCK_NOT_AVAILABLE => {
            let message = format!(
                "another session has locked the table {quoted} of the records or this row, for example by DDL; try again \
                 later"
            );
            (ErrorKind::Unavailable, message)
        }
        // Columns, types, constraints and triggers are others than those that Leasehold creates.
        code if ["0A", "22", "23", "42", "P0"]
            .iter()
            .any(|class| code.starts_with(class)) =>
        {
            return foreign(quoted, operation).with_source(connector.map_error(error, operation));
        }
        _ => return connector.map_error(error, operation),
    };
    ERRORS
        .error(kind, operation, message)
        .with_source(connector.map_error(error, operation))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs of different versions share the table.
    #[test]
    fn the_table_is_stable() {
        assert_eq!(
            create("t"),
            "CREATE TABLE IF NOT EXISTS t (name bytea NOT NULL, lock_key text NOT NULL, \
             version int8 NOT NULL, sequence int8 NOT NULL, owner uuid NOT NULL, token int8, \
             label text NOT NULL, value bytea, written timestamptz NOT NULL, \
             PRIMARY KEY (name, lock_key))"
        );
    }

    #[test]
    fn denied_error_names_only_the_missing_rights() {
        let missing_to = |found| missing(found, "s", "\"s\".\"t\"", "a\"b");
        let nothing = missing_to(Found::default());
        assert!(nothing.starts_with("CREATE SCHEMA IF NOT EXISTS \"s\"; CREATE TABLE"));
        assert!(nothing.ends_with(
            "GRANT USAGE ON SCHEMA \"s\" TO \"a\"\"b\"; \
             GRANT SELECT, INSERT, UPDATE ON TABLE \"s\".\"t\" TO \"a\"\"b\""
        ));
        let table = |usable| Table {
            is_table: true,
            logged: true,
            usable,
        };
        let found = |schema_usable, usable| Found {
            schema: true,
            schema_usable,
            table: Some(table(usable)),
        };
        assert_eq!(
            missing_to(found(false, true)),
            "GRANT USAGE ON SCHEMA \"s\" TO \"a\"\"b\""
        );
        assert_eq!(
            missing_to(found(true, false)),
            "GRANT SELECT, INSERT, UPDATE ON TABLE \"s\".\"t\" TO \"a\"\"b\""
        );
    }
}

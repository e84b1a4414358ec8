//! The sequence that fencing tokens are drawn from.
//!
//! One for all locks of a database: so the tokens of each key grow.

use leasehold_core::{Error, ErrorKind, Result};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::{
    config::PostgresConfig,
    connection::Link,
    error::{self, DUPLICATE_OBJECT, INSUFFICIENT_PRIVILEGE, NO_SUCH_SCHEMA, has_code},
};

const LOOK: &str = "SELECT s.seqincrement > 0 AND s.seqcache = 1 AND NOT s.seqcycle AND c.relpersistence = 'p', \
     has_sequence_privilege(c.oid, 'USAGE') \
     FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_sequence AS s ON s.seqrelid = c.oid \
     WHERE n.nspname = $1 AND c.relname = $2";

/// As it stands in SQL.
pub(crate) fn quoted(config: &PostgresConfig) -> Result<Option<String>> {
    if !config.fencing {
        return Ok(None);
    }
    let (schema, name) = config.sequence_parts()?;
    Ok(Some(format!("\"{schema}\".\"{name}\"")))
}

/// Makes sure that it is there and fit.
pub(crate) async fn ensure(link: &Link, connection: &mut PgConnection) -> Result<()> {
    let Some(quoted) = quoted(&link.config)? else { return Ok(()) };
    if look(link, connection, &quoted).await? {
        return Ok(());
    }
    let create = format!("CREATE SEQUENCE IF NOT EXISTS {quoted}");
    let created = link.within(sqlx::raw_sql(AssertSqlSafe(create.clone())).execute(&mut *connection)).await?;
    match created {
        Ok(_) => {}
        // Somebody else made it at the same time.
        Err(error) if DUPLICATE_OBJECT.iter().any(|code| has_code(&error, code)) => {}
        Err(error) if has_code(&error, INSUFFICIENT_PRIVILEGE) || has_code(&error, NO_SUCH_SCHEMA) => {
            return Err(denied(link, &format!("{create}; {}", grant(link, &quoted))).with_source(error));
        }
        Err(error) => return Err(link.failed(error, "connect")),
    }
    if look(link, connection, &quoted).await? { Ok(()) } else { Err(error::protocol("connect")) }
}

async fn look(link: &Link, connection: &mut PgConnection, quoted: &str) -> Result<bool> {
    let (schema, name) = link.config.sequence_parts()?;
    let looked = sqlx::query(LOOK).bind(schema).bind(name).fetch_optional(connection);
    let Some(row) = link.within(looked).await?.map_err(|error| link.failed(error, "connect"))? else {
        return Ok(false);
    };
    let (fit, usable): (bool, bool) = (link.read(&row, 0)?, link.read(&row, 1)?);
    if !fit {
        return Err(error::plain(
            ErrorKind::Unsupported,
            "connect",
            format!(
                "the sequence {quoted} may give tokens that fall: it must be logged, count up, not cycle and cache 1; run: \
                 ALTER SEQUENCE {quoted} SET LOGGED INCREMENT 1 NO CYCLE CACHE 1"
            ),
        ));
    }
    if usable { Ok(true) } else { Err(denied(link, &grant(link, quoted))) }
}

fn grant(link: &Link, quoted: &str) -> String {
    format!("GRANT USAGE ON SEQUENCE {quoted} TO \"{}\"", link.user().replace('"', "\"\""))
}

fn denied(link: &Link, run: &str) -> Error {
    error::plain(
        ErrorKind::Denied,
        "connect",
        format!(
            "the fencing tokens need a sequence that the role `{}` may use; as its owner run: {run}; or switch tokens off with \
             fencing=off",
            link.user()
        ),
    )
}

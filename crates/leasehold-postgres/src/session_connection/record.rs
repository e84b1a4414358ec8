//! The write of the record beside a lock that the session holds.

use leasehold_core::{ErrorKind, Result, backend::support::record_label};
use sqlx::Row as _;

use crate::{
    connection::Connector,
    error::{self, ERRORS, READ_ONLY, has_code},
    record::{WriteJob, not_a_record},
    record_table::{self, WRITE},
    session_connection::{Failure, HeldLock, SessionConnection},
    statement::{CHANGED, FOREIGN, NOT_HELD},
};

impl SessionConnection {
    /// Writes a record if its lock is held by this acquisition. Returns its version.
    pub(crate) async fn write_record(
        &mut self,
        connector: &Connector,
        job: WriteJob,
    ) -> Result<u64> {
        if self.is_over() {
            return Err(error::over(WRITE));
        }
        let is_held = matches!(
            self.held.get(&job.lock),
            Some(HeldLock::Exclusive(held)) if *held == job.acquisition
        );
        if !is_held {
            return Err(not_held());
        }
        let sequence = i64::try_from(job.write.sequence()).map_err(|_| {
            let message = "the sequence of the write does not fit into 63 bits";
            ERRORS.error(ErrorKind::InvalidInput, WRITE, message)
        })?;
        let marker = job.lock.record_marker(job.owner);
        let has_marker = self.markers.is_set_for(marker, job.acquisition);
        let token = job.token.and_then(|token| i64::try_from(token.get()).ok());
        // A text of the server has no NUL character.
        let label = record_label(&job.label).replace('\0', "?");
        let query = sqlx::query(self.statements.write_record.clone())
            .bind(job.name)
            .bind(job.lock.to_string())
            .bind(sequence)
            .bind(job.owner.to_string())
            .bind(token)
            .bind(label)
            .bind(job.write.value().map(<[u8]>::to_vec))
            .bind(self.database)
            .bind(job.lock.bits())
            .bind(job.lock.objsubid())
            .bind((!has_marker).then_some(marker))
            .bind(job.lock.record_key().payload());
        // Errors of the server are mapped here, because they are about the table.
        let asked = self
            .fetch(connector, WRITE, async |connection| {
                match query.fetch_one(connection).await {
                    Err(error) if !error::is_over(&error) => Ok(Err(error)),
                    answer => answer.map(Ok),
                }
            })
            .await;
        let row = match asked {
            Ok(Ok(row)) => row,
            Ok(Err(error)) if has_code(&error, READ_ONLY) => {
                let message =
                    "the server has become a standby, which shares no locks with its primary";
                let error = ERRORS
                    .error(ErrorKind::Lost, WRITE, message)
                    .with_source(connector.map_error(error, WRITE));
                return Err(self.lose(error));
            }
            Ok(Err(error)) => {
                let error = record_table::failed(connector, error, WRITE);
                // The statement may have set the marker.
                let failure = Failure::Statement(error);
                let (Ok(error) | Err(error)) =
                    self.recover(connector, &[], Vec::new(), failure).await;
                return Err(error);
            }
            Err(Failure::Statement(error) | Failure::Over(error)) => {
                let message = "the connection that holds the lock broke before the answer, so the record may have been \
                               written; read it, once the lock is held again";
                let error = ERRORS
                    .error(ErrorKind::Indeterminate, WRITE, message)
                    .with_source(error);
                return Err(error);
            }
        };
        let result: i64 = match self.read(&row) {
            Ok(result) => result,
            // The statement has an effect only on the backend of the session.
            Err(Failure::Statement(error) | Failure::Over(error)) => return Err(error),
        };
        if row.try_get::<bool, _>(2).unwrap_or(false) && !has_marker {
            self.markers.add(marker, job.acquisition);
            self.record_markers.insert(job.lock, marker);
        }
        match result {
            NOT_HELD => Err(not_held()),
            FOREIGN => Err(not_a_record(&job.shown, WRITE)),
            CHANGED => {
                let message = "another program changed the row of the record at the same time; nothing was written";
                Err(ERRORS.error(ErrorKind::Unavailable, WRITE, message))
            }
            version => u64::try_from(version).map_err(|_| ERRORS.unexpected(WRITE)),
        }
    }
}

fn not_held() -> leasehold_core::Error {
    let message = "the session does not hold the lock any more";
    ERRORS.error(ErrorKind::Lost, WRITE, message)
}

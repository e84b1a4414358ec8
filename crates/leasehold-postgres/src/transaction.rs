//! Locks inside of a transaction of your own.

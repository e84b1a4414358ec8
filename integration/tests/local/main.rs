//! The memory and the file backend.

mod file;
mod file_model;
mod file_processes;
mod file_records;
mod memory;
mod workers;

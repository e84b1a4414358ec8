//! Helpers of the examples, most of which start themselves as further processes.

use std::{ffi::OsStr, io, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

/// The lines that a process prints.
pub type Output = Lines<BufReader<ChildStdout>>;

/// Starts this program with these arguments. Returns the process, which is killed when it is
/// dropped, and the lines that it prints.
///
/// # Errors
/// The program cannot be started.
pub fn start_self(
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> io::Result<(Child, Output)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    Ok((child, BufReader::new(output).lines()))
}

//! Searches for input that breaks a parser. `fuzz/run.sh` builds and runs it; see `README.md`.
//!
//! Without `--cfg fuzzing`, which that script sets, this program does nothing.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
mod targets;

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("this program was built without its targets; run fuzz/run.sh");
    std::process::exit(2);
}

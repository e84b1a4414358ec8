//! The times on the command line.

#[path = "../../../crates/leasehold-cli/src/duration.rs"]
mod cli;

pub(super) fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match cli::duration(&text) {
        Ok(time) => {
            let printed = humantime::format_duration(time).to_string();
            assert_eq!(cli::duration(&printed), Ok(time), "{text:?}");
        }
        Err(error) => {
            // A message may repeat a unit that it does not know.
            let longest = text.len() + 1024;
            assert!(error.contains("500ms") && error.len() < longest, "{error}");
            assert!(!error.contains(char::is_control), "{text:?}: {error:?}");
        }
    }
    match cli::ttl(&text) {
        Ok(ttl) => assert_eq!(cli::duration(&text), Ok(ttl.as_duration())),
        Err(error) => assert!(error.contains("ms"), "{error}"),
    }
}

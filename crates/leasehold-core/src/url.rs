//! For implementors: the parts of a backend's URL that all backends spell the same way.
//!
//! The errors are [`ErrorKind::InvalidInput`], say what is wrong and never show the value: a URL may hold a password. They
//! name no backend yet; see [`Error::with_backend`].

use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::error::{Error, ErrorKind, Result};

/// Undoes the percent-encoding of a part of the URL, such as `host`, `user` or `password`.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if the bytes are not UTF-8.
///
/// ```
/// use leasehold_core::url::decode;
///
/// assert_eq!(decode("password", "p%23ss")?, "p#ss");
/// assert!(decode("password", "%ff").is_err());
/// # Ok::<(), leasehold_core::Error>(())
/// ```
pub fn decode(part: &str, text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Into::into).map_err(|_| invalid(format!("the {part} in the URL is not UTF-8 when decoded")))
}

/// Reads the value of an option that is a time: a whole number of seconds (`2s`) or milliseconds (`500ms`), above zero.
///
/// # Errors
/// [`ErrorKind::InvalidInput`], naming the option, if it is anything else.
///
/// ```
/// use std::time::Duration;
///
/// use leasehold_core::url::duration;
///
/// assert_eq!(duration("connect-timeout", "500ms")?, Duration::from_millis(500));
/// let error = duration("connect-timeout", "5").unwrap_err();
/// assert!(error.to_string().contains("connect-timeout"));
/// # Ok::<(), leasehold_core::Error>(())
/// ```
pub fn duration(option: &str, text: &str) -> Result<Duration> {
    let parsed = match text.strip_suffix("ms") {
        Some(millis) => millis.parse().map(Duration::from_millis),
        None => text.strip_suffix('s').unwrap_or_default().parse().map(Duration::from_secs),
    };
    parsed
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| invalid(format!("the option `{option}` is not a time such as 500ms or 2s")))
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_and_is_above_zero() {
        assert_eq!(duration("x", "2s").unwrap(), Duration::from_secs(2));
        assert_eq!(duration("x", "2000ms").unwrap(), Duration::from_secs(2));
        for text in ["", "s", "ms", "5", "0s", "0ms", "-1s", "1.5s", "1 s", "1m", "1us", "99999999999999999999s"] {
            assert_eq!(duration("x", text).unwrap_err().kind(), ErrorKind::InvalidInput, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_decoded_is_named_and_not_shown() {
        let error = decode("password", "secret%ff").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("password") && !format!("{error:?}").contains("secret"), "{error:?}");
    }
}

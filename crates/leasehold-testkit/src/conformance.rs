//! [`conformance!`](crate::conformance): one test for each case and each way to reach the backend.

/// Generates a module with a test for each case in each [`Wrapping`](crate::Wrapping), and one test
/// that prints the cases that do not apply to the backend.
///
/// Use `conformance!(module, fixture)` for a backend with a server. Use
/// `conformance!(module, paused, fixture)` for an in-memory backend that takes its time from tokio;
/// its tests run in paused time.
///
/// `fixture` is an expression whose value implements [`BackendFixture`](crate::BackendFixture). It
/// may `.await`, and it sees the names that are in scope at the call of the macro. Each test
/// evaluates it once, on its own runtime.
///
/// ```
/// use leasehold_testkit::{conformance, mutants::ModelFixture};
///
/// conformance!(model, paused, ModelFixture::healthy());
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! conformance {
    ($module:ident, paused, $fixture:expr $(,)?) => {
        $crate::__conformance!($module, paused, $fixture);
    };
    ($module:ident, real, $fixture:expr $(,)?) => {
        $crate::__conformance!($module, real, $fixture);
    };
    ($module:ident, $fixture:expr $(,)?) => {
        $crate::__conformance!($module, real, $fixture);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance {
    ($module:ident, $time:ident, $fixture:expr) => {
        mod $module {
            #[allow(unused_imports, reason = "the fixture may need no import")]
            use super::*;

            async fn fixture() -> Box<dyn $crate::BackendFixture> {
                Box::new($fixture)
            }

            mod bare {
                $crate::__with_cases!([$crate::__tests], [$time Bare]);
            }

            mod arc_dyn {
                $crate::__with_cases!([$crate::__tests], [$time ArcDyn]);
            }

            mod forwarding {
                $crate::__with_cases!([$crate::__tests], [$time Forwarding]);
            }

            #[test]
            fn cases_not_run_are_printed() {
                $crate::harness::print_not_run($crate::harness::Time::$time, fixture);
            }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __tests {
    ([$time:ident $wrapping:ident] $($concept:ident { $($case:ident: $needs:ident,)* })*) => {
        $($(
            #[test]
            fn $case() {
                $crate::harness::test(
                    $crate::harness::Time::$time,
                    super::fixture,
                    $crate::Wrapping::$wrapping,
                    stringify!($case),
                );
            }
        )*)*
    };
}

//! [`conformance!`](crate::conformance): one test for each case and each way to reach the backend.

/// Makes a module of tests: every case in every [`Wrapping`](crate::Wrapping), and one test that prints the
/// cases that this backend does not run.
///
/// `conformance!(module, fixture)`, or `conformance!(module, paused, fixture)` for a backend
/// without a server whose time is tokio's. The expression may `.await`, is evaluated on the runtime
/// of each test anew, and sees what is in scope where the macro is used.
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
            #[allow(unused_imports, reason = "the fixture may need nothing")]
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

//! The healthy model keeps the whole contract, in every form.

use leasehold_testkit::mutants::ModelSubject;

leasehold_testkit::conformance!(model, paused, ModelSubject::healthy());

mod in_real_time {
    use leasehold_testkit::mutants::ModelSubject;

    leasehold_testkit::conformance!(model, real, ModelSubject::in_real_time());
}

leasehold_testkit::conformance!(instant, paused, ModelSubject::instant());

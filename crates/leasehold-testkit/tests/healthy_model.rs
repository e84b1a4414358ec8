//! The model without bugs passes the suite in every wrapping.

use leasehold_testkit::mutants::ModelFixture;

leasehold_testkit::conformance!(model, paused, ModelFixture::healthy());

leasehold_testkit::conformance!(proposals, paused, ModelFixture::with_proposals());

mod in_real_time {
    use leasehold_testkit::mutants::ModelFixture;

    leasehold_testkit::conformance!(model, real, ModelFixture::in_real_time());
}

leasehold_testkit::conformance!(instant, paused, ModelFixture::instant());

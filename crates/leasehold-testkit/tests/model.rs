//! The healthy model keeps the whole contract, in every form.

use leasehold_testkit::broken::ModelSubject;

leasehold_testkit::conformance!(model, paused, ModelSubject::healthy());

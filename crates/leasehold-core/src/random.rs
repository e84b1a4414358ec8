//! Random numbers: for owners, which must differ, and for pauses.

use std::cell::RefCell;

use rand::{
    RngExt,
    distr::{Distribution, StandardUniform},
    rngs::SmallRng,
};

thread_local! {
    /// Seeded by the system with 256 bits. What is drawn must differ, not be secret: who can reach a server can release any
    /// lock on it.
    static GENERATOR: RefCell<SmallRng> = RefCell::new(rand::make_rng());
}

/// The next one of this thread.
pub(crate) fn random<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    let next = |generator: &RefCell<SmallRng>| generator.borrow_mut().random();
    // While the thread ends it may have no generator any more.
    GENERATOR.try_with(next).unwrap_or_else(|_ended| rand::make_rng::<SmallRng>().random())
}

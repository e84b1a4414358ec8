//! Runnable programs, one purpose each; they stand beside this folder. This library has nothing in
//! it: cargo wants one.

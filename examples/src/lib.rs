//! An empty library, which cargo requires. The examples are the files beside this folder.

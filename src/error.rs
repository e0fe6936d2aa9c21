//! Errors that reach a client, as types with their SQLSTATE, who is to blame and whether to try again.

//! Operators: status, health, metrics over HTTP.

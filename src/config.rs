//! Configuration: proxy.toml, its defaults and its validation.
